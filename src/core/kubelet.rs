//! Which flags and which configuration a kubelet of a given version takes. This is the one place that knows;
//! templates only print what it decides. Sources: the kubelet's changelogs of 1.24 and 1.27, and `--help` of
//! the versions the lab runs.

use serde::Serialize;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Version {
    pub major: u32,
    pub minor: u32,
    pub patch: u32,
}

impl Version {
    /// Reads `1.35.4`, `v1.35.4` or `1.35`.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.strip_prefix('v').unwrap_or(text).split('.');
        let version = Self {
            major: parts.next()?.parse().ok()?,
            minor: parts.next()?.parse().ok()?,
            patch: parts
                .next()
                .map_or(Some(0), |p| p.split(['-', '+']).next()?.parse().ok())?,
        };
        (parts.next().is_none() && version.major == 1).then_some(version)
    }
}

/// Whether a kubelet that reports one version is the one that is asked for: `1.35` is any 1.35.z, and `1.28.3` a vendor's
/// build of it, too, as `v1.28.3+vmware.1` or `v1.28.3-eks-1`, but no pre-release. `templates/common/kubelet-version.sh` asks it in the guest.
pub fn is_release(reported: &str, asked: &str) -> bool {
    let before = |more: &str| {
        ["-alpha", "-beta", "-rc"]
            .iter()
            .any(|word| more.contains(word))
    };
    let more = bare(reported).strip_prefix(bare(asked));
    more.is_some_and(|more| more.is_empty() || more.starts_with(['.', '+', '-']) && !before(more))
}

/// A version without its `v`.
pub fn bare(version: &str) -> &str {
    version.strip_prefix('v').unwrap_or(version)
}

/// The container runtime a profile installs, as it concerns the kubelet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Runtime {
    Docker,
    Containerd,
}

/// A key of KubeletConfiguration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Setting {
    pub key: &'static str,
    pub value: &'static str,
}

const CONTAINERD: &str = "unix:///run/containerd/containerd.sock";

/// A flag, the minor version that brought it in its present meaning, and the one that removed it.
struct Flag {
    text: fn(&Choice) -> Option<String>,
    from: u32,
    before: u32,
}

/// What the flags depend on besides the version.
pub struct Choice<'a> {
    pub version: Version,
    pub runtime: Runtime,
    pub node_name: &'a str,
    pub node_ip: &'a str,
    pub pause_image: &'a str,
    pub cni: bool,
    /// It asks the cluster for the certificate it serves with, instead of signing its own.
    pub serving: bool,
    pub taints: &'a [String],
}

const EVER: u32 = u32::MAX;

/// The table, in the order in which the flags are given.
const FLAGS: &[Flag] = &[
    Flag {
        text: |_| Some("--bootstrap-kubeconfig=/etc/kubernetes/bootstrap-kubelet.conf".into()),
        from: 0,
        before: EVER,
    },
    Flag {
        text: |_| Some("--kubeconfig=/etc/kubernetes/kubelet.conf".into()),
        from: 0,
        before: EVER,
    },
    Flag {
        text: |_| Some("--config=/var/lib/kubelet/config.yaml".into()),
        from: 0,
        before: EVER,
    },
    // The configuration file's cgroupDriver says the same from then on.
    Flag {
        text: |_| Some("--cgroup-driver=systemd".into()),
        from: 0,
        before: 24,
    },
    Flag {
        text: |c| Some(format!("--hostname-override={}", c.node_name)),
        from: 0,
        before: EVER,
    },
    Flag {
        text: |c| Some(format!("--node-ip={}", c.node_ip)),
        from: 0,
        before: EVER,
    },
    // 1.24 removed dockershim, and with it the kubelet's own network plugins.
    Flag {
        text: |c| (c.cni && c.runtime == Runtime::Docker).then(|| "--network-plugin=cni".into()),
        from: 0,
        before: 24,
    },
    Flag {
        text: |c| (c.runtime == Runtime::Containerd).then(|| "--container-runtime=remote".into()),
        from: 0,
        before: 27,
    },
    Flag {
        text: |c| {
            (c.runtime == Runtime::Containerd)
                .then(|| format!("--container-runtime-endpoint={CONTAINERD}"))
        },
        from: 0,
        before: 27,
    },
    // From 1.27 on the runtime's own configuration names the pause image.
    Flag {
        text: |c| Some(format!("--pod-infra-container-image={}", c.pause_image)),
        from: 0,
        before: 27,
    },
    Flag {
        text: |c| {
            (!c.taints.is_empty()).then(|| format!("--register-with-taints={}", c.taints.join(",")))
        },
        from: 0,
        before: EVER,
    },
];

impl Choice<'_> {
    /// The kubelet's command line without the program.
    pub fn flags(&self) -> Vec<String> {
        FLAGS
            .iter()
            .filter(|flag| (flag.from..flag.before).contains(&self.version.minor))
            .filter_map(|flag| (flag.text)(self))
            .collect()
    }

    /// Keys of KubeletConfiguration that replaced a flag of the table.
    pub fn config(&self) -> Vec<Setting> {
        let mut keys = Vec::new();
        if self.version.minor >= 24 {
            keys.push(Setting {
                key: "cgroupDriver",
                value: "systemd",
            });
        }
        if self.version.minor >= 27 && self.runtime == Runtime::Containerd {
            keys.push(Setting {
                key: "containerRuntimeEndpoint",
                value: CONTAINERD,
            });
        }
        if self.serving {
            keys.push(Setting {
                key: "serverTLSBootstrap",
                value: "true",
            });
        }
        keys
    }
}

/// Why this runtime cannot serve this kubelet, if it cannot.
pub fn mismatch(version: Version, runtime: Runtime) -> Option<&'static str> {
    (runtime == Runtime::Docker && version.minor >= 24).then_some(
        "kubelet 1.24 removed dockershim: use a containerd profile, or a kubelet before 1.24",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(version: &str, runtime: Runtime) -> Vec<String> {
        Choice {
            version: Version::parse(version).unwrap(),
            runtime,
            node_name: "n1",
            node_ip: "192.168.3.104",
            pause_image: "pause:3.2",
            cni: true,
            serving: false,
            taints: &[],
        }
        .flags()
    }

    #[test]
    fn the_seeds_kubelet_gets_the_seeds_flags() {
        let flags = flags("1.18.3", Runtime::Docker);
        for flag in [
            "--bootstrap-kubeconfig=/etc/kubernetes/bootstrap-kubelet.conf",
            "--kubeconfig=/etc/kubernetes/kubelet.conf",
            "--config=/var/lib/kubelet/config.yaml",
            "--cgroup-driver=systemd",
            "--hostname-override=n1",
            "--network-plugin=cni",
            "--pod-infra-container-image=pause:3.2",
        ] {
            assert!(
                flags.iter().any(|f| f == flag),
                "{flag} is missing from {flags:?}"
            );
        }
    }

    #[test]
    fn removed_flags_are_not_given() {
        let at = |version: &str| flags(version, Runtime::Containerd).join(" ");
        assert!(at("1.23.0").contains("--container-runtime=remote"));
        assert!(!at("1.24.0").contains("--network-plugin"));
        assert!(at("1.26.9").contains("--container-runtime-endpoint"));
        assert!(!at("1.27.0").contains("--container-runtime"));
        assert!(!at("1.35.4").contains("--pod-infra-container-image"));
    }

    #[test]
    fn docker_needs_dockershim() {
        assert!(mismatch(Version::parse("1.24.0").unwrap(), Runtime::Docker).is_some());
        assert!(mismatch(Version::parse("1.23.9").unwrap(), Runtime::Docker).is_none());
    }

    #[test]
    fn a_release_is_known_by_what_its_kubelet_reports() {
        for (reported, asked, is) in [
            ("v1.35.4", "1.35.4", true),
            ("v1.35.4", "v1.35.4", true),
            ("v1.35.4", "1.35", true),
            ("v1.35.0", "1.35", true),
            ("v1.28.3+vmware.1", "1.28.3", true),
            ("v1.28.3-eks-1", "1.28.3", true),
            ("v1.28.3-eks-1", "v1.28", true),
            ("v1.28.3+vmware.1", "1.28.3+vmware.1", true),
            ("v1.35.40", "1.35.4", false),
            ("v1.35.4", "1.3", false),
            ("v1.35.4", "1.35.3", false),
            ("v1.35.4", "1.35.4-rc.1", false),
            ("v1.35.4-rc.1", "1.35.4", false),
            ("v1.35.4-rc.1", "1.35.4-rc.1", true),
            ("v1.28.3+vmware.2", "1.28.3+vmware.1", false),
            ("", "1.35.4", false),
        ] {
            assert_eq!(is_release(reported, asked), is, "{reported} for {asked}");
        }
    }

    #[test]
    fn versions() {
        assert_eq!(
            Version::parse("v1.18.3"),
            Some(Version {
                major: 1,
                minor: 18,
                patch: 3
            })
        );
        assert_eq!(
            Version::parse("1.35"),
            Some(Version {
                major: 1,
                minor: 35,
                patch: 0
            })
        );
        assert_eq!(Version::parse("latest"), None);
        assert_eq!(Version::parse("1.2.3.4"), None);
    }
}
