//! `templates/common/apt.sh` and the version of the kubelet, in a real bash with stand-ins for apt and dpkg.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use nodegraft::core::template::Templates;
use tempfile::TempDir;

/// Notes how it was called. Says what lies in the file of its name and verb, `apt-get.update`, and fails with it as often
/// as it has lines left.
const RECORDER: &str = r#"#!/bin/bash
name=${0##*/}
cd "$NODEGRAFT_TEST" || exit 9
echo "$name $*" >>calls
for word; do
  trouble=$name.$word
  if [ -s "$trouble" ]; then
    head -n 1 "$trouble"
    sed -i 1d "$trouble"
    exit 100
  fi
done
case "$name $1" in
  'apt-cache madison') [ ! -e "madison.$2" ] || cat "madison.$2" ;;
  'kubelet --version') echo "Kubernetes $(cat kubelet.version 2>/dev/null || echo v1.35.4)" ;;
esac
"#;

struct Debian(TempDir);

impl Debian {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("bin")).unwrap();
        for name in ["apt-get", "apt-cache", "apt-mark", "dpkg", "kubelet"] {
            let path = dir.path().join("bin").join(name);
            fs::write(&path, RECORDER).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        Self(dir)
    }

    fn has(self, file: &str, text: &str) -> Self {
        fs::write(self.0.path().join(file), text).unwrap();
        self
    }

    /// Runs a template, and says whether it ended well, what it printed, and what it called.
    fn run(&self, template: &str, values: serde_json::Value) -> (bool, String, String) {
        let templates = Templates::with([("t.sh".to_owned(), template.to_owned())].into()).unwrap();
        let script = templates
            .render("t.sh", &values)
            .unwrap()
            .replace("/usr/bin/kubelet", "kubelet");
        fs::write(self.0.path().join("t.sh"), script).unwrap();
        let path = format!(
            "{}:{}",
            self.0.path().join("bin").display(),
            std::env::var("PATH").unwrap()
        );
        let output = Command::new("bash")
            .arg(self.0.path().join("t.sh"))
            .env("PATH", path)
            .env("NODEGRAFT_TEST", self.0.path())
            .output()
            .unwrap();
        let calls = fs::read_to_string(self.0.path().join("calls")).unwrap_or_default();
        let text = format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        (output.status.success(), text, calls)
    }

    fn apt(&self, script: &str) -> (bool, String, String) {
        let head =
            "{% include \"common/marker.sh\" %}\n{% include \"common/apt.sh\" %}\napt_patience=3\n";
        self.run(
            &format!("{head}{script}\necho went on\n"),
            serde_json::json!({}),
        )
    }
}

const LISTS: &str =
    "E: Could not get lock /var/lib/apt/lists/lock. It is held by process 42 (apt.systemd.dai)\n";

#[test]
fn a_lock_of_somebody_else_is_waited_for_by_name() {
    let (well, text, calls) = Debian::new().has("apt-get.update", LISTS).apt("apt_update");
    assert!(
        well && text.contains("apt: waiting for another program: E: Could not get lock")
            && text.contains("went on"),
        "{text}"
    );
    assert_eq!(
        calls
            .lines()
            .filter(|call| call.ends_with("update"))
            .count(),
        2,
        "{calls}"
    );

    let (well, text, _) = Debian::new()
        .has("apt-get.update", &LISTS.repeat(99))
        .apt("apt_update");
    assert!(!well && !text.contains("went on"), "{text}");
    assert!(
        text.contains("another program kept its lock for 3 s") && text.contains("process 42"),
        "{text}"
    );

    let dpkg = "dpkg: error: dpkg frontend lock was locked by another process with pid 7\n";
    let (well, _, calls) = Debian::new().has("dpkg.-a", dpkg).apt("apt_install curl");
    assert!(
        well && calls.matches("--configure -a").count() == 2,
        "{calls}"
    );
}

#[test]
fn another_fault_is_not_tried_again() {
    let (well, text, calls) = Debian::new()
        .has("apt-get.update", "E: Malformed entry 1 in list file\n")
        .apt("apt_update");
    assert!(
        !well && text.contains("Malformed entry") && !text.contains("went on"),
        "{text}"
    );
    assert_eq!(calls.lines().count(), 1, "{calls}");
}

#[test]
fn what_was_interrupted_is_finished_before_anything_is_installed() {
    let (well, _, calls) = Debian::new().apt("apt_install curl socat");
    let calls: Vec<_> = calls.lines().collect();
    assert!(well && calls.len() == 2, "{calls:?}");
    assert!(
        calls[0].starts_with("dpkg") && calls[0].ends_with("--configure -a"),
        "{calls:?}"
    );
    assert!(
        calls[1].ends_with("install -y --no-install-recommends curl socat")
            && calls[1].contains("--force-confold"),
        "{calls:?}"
    );
}

const MADISON: &str = "  kubelet | 1.35.40-1.1 | http://m/ Packages\n   kubelet | 1.35.4-2.1 | http://m/ Packages\n   kubelet | 1.35.4-1.1 | http://m/ Packages\n\
                       \x20  kubelet | 1.34.0-1.1 | http://m/ Packages\n";

#[test]
fn a_version_is_the_newest_package_of_it_or_said_to_be_missing() {
    let version = |wanted: &str| {
        Debian::new()
            .has("madison.kubelet", MADISON)
            .apt(&format!("apt_version kubelet {wanted}"))
    };
    assert_eq!(version("1.35.4").1, "1.35.4-2.1\nwent on\n");
    assert_eq!(version("1.34").1, "1.34.0-1.1\nwent on\n");
    assert_eq!(version("1.34.0-1.1").1, "1.34.0-1.1\nwent on\n");
    let (well, text, _) = version("1.33.1");
    assert!(
        !well
            && text.starts_with(
                "there is no version 1.33.1 of the package kubelet; there is: 1.34.0-1.1 1.35.4-1.1"
            ),
        "{text}"
    );
    let (well, text, _) = Debian::new().apt("apt_version kubelet 1.33.1");
    assert!(
        !well && text.contains("there is no package kubelet in the lists of apt"),
        "{text}"
    );
}

#[test]
fn a_kubelet_that_says_another_version_than_the_spec_is_refused() {
    let check = |release: &str| {
        Debian::new().run(
            "set -eu\n{% include \"common/kubelet-version.sh\" %}",
            serde_json::json!({"kubelet": {"release": release}}),
        )
    };
    for same in ["1.35.4", "1.35"] {
        let (well, text, _) = check(same);
        assert!(well && text == "Kubernetes v1.35.4\n", "{same}: {text}");
    }
    for other in ["1.35.40", "1.35.3", "1.3", "1.35.4-rc.1"] {
        let (well, text, _) = check(other);
        assert!(
            !well
                && text.contains(&format!("wants kubelet {other}"))
                && text.contains("Kubernetes v1.35.4"),
            "{other}: {text}"
        );
    }
    for vendor in ["v1.28.3+vmware.1", "v1.28.3-eks-1"] {
        let (well, text, _) = Debian::new().has("kubelet.version", vendor).run(
            "set -eu\n{% include \"common/kubelet-version.sh\" %}",
            serde_json::json!({"kubelet": {"release": "1.28.3"}}),
        );
        assert!(well && text == format!("Kubernetes {vendor}\n"), "{text}");
    }
}

/// The step itself: the package of the spec's version, held, whatever was held before.
#[test]
fn the_package_of_the_specs_version_is_installed_and_held() {
    use nodegraft::core::plan::Plan;
    use nodegraft::core::spec::Spec;
    let script = |package: &str| {
        let spec = format!(
            "version: 1\ncluster: {{name: c, kubeconfig: k}}\ndefaults: {{template: t, profile: debian-containerd, gateway: 10.0.0.1}}\n\
             nodes:\n  - {{name: n, address: 10.0.0.2/24, kubelet: {{version: 1.35.4, package: {package}}}}}\n"
        );
        let plan = Plan::new(
            &Spec::parse(&spec, "c.yaml").unwrap(),
            Templates::built_in(),
            &[],
        )
        .unwrap();
        let script = plan.nodes[0].steps[2].script.clone();
        // What follows writes below /etc.
        script
            .split("mkdir -p /etc/kubernetes")
            .next()
            .unwrap()
            .to_owned()
    };
    let run = |package: &str| {
        let debian = Debian::new().has("madison.kubelet", MADISON);
        let (well, text, calls) = debian.run(
            "{{ script }}",
            serde_json::json!({ "script": script(package) }),
        );
        assert!(well, "{text}");
        calls
    };
    for (package, installed) in [
        ("kubelet", "kubelet=1.35.4-2.1"),
        ("kubelet=1.35.4-1.1", "kubelet=1.35.4-1.1"),
    ] {
        let calls = run(package);
        let install = calls
            .lines()
            .find(|call| call.ends_with(installed))
            .unwrap_or_else(|| panic!("{calls}"));
        assert!(
            install.contains("--allow-downgrades --allow-change-held-packages"),
            "{install}"
        );
        assert!(
            calls.lines().any(|call| call == "apt-mark hold kubelet"),
            "{calls}"
        );
    }
}
