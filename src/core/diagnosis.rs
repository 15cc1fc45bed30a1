//! Why a machine does not join, told from what the API server, the guest and the kubelet's log show. Pure: the stages
//! collect the facts. The kubelet's words are those of 1.18 and of 1.35, as the lab shows them.

use crate::core::kubelet::Version;

/// What was waited for when time ran out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waited {
    Request,
    Approval,
    Certificate,
    Registration,
    Ready,
}

impl Waited {
    pub fn describe(self) -> &'static str {
        match self {
            Self::Request => "waiting for the kubelet's certificate request",
            Self::Approval => "waiting for somebody to approve the certificate request",
            Self::Certificate => "waiting for the certificate",
            Self::Registration => "waiting for the kubelet to register the Node",
            Self::Ready => "waiting for the Node to be Ready",
        }
    }
}

/// How the cluster sees the token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenState {
    Alive,
    Expired,
    Gone,
}

/// What is known when a join is stuck.
#[derive(Debug, Clone)]
pub struct Facts {
    pub waited: Waited,
    /// The API server as the guest was told to reach it.
    pub server: String,
    pub token: TokenState,
    /// The token's user and its groups.
    pub user: String,
    pub groups: Vec<String>,
    /// The API server's answer to whether that user may ask for a certificate.
    pub may_request: bool,
    /// How a person runs a command on the machine: `nodegraft exec n1 --`.
    pub shell: String,
    pub guest: Guest,
}

/// What the guest shows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Guest {
    /// systemd's word for the kubelet: `active`, `activating`, `failed`.
    pub kubelet: String,
    /// How often systemd restarted it by itself.
    pub restarts: u32,
    pub config_missing: bool,
    pub swap: bool,
    /// The unit of the runtime that this kubelet uses, if it is there and does not run.
    pub runtime_down: Option<String>,
    /// Seconds by which the guest's clock is ahead of the API server's.
    pub skew: Option<i64>,
    /// The kubelet's last errors since the join began.
    pub log: Vec<String>,
}

/// A cause and a remedy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    pub because: Option<String>,
    pub help: String,
    /// It stays so until somebody changes the machine or its settings: there is no point in waiting on.
    pub hopeless: bool,
}

/// A clock that is this far off makes certificates and tokens invalid that are not.
pub const SKEW: i64 = 60;
/// A kubelet that systemd restarted this often does not come up by itself.
pub const CRASH_LOOP: u32 = 3;

impl Guest {
    /// Whether the kubelet ends again and again.
    pub fn crash_loops(&self) -> bool {
        self.restarts >= CRASH_LOOP || (self.kubelet != "active" && !self.kubelet.is_empty())
    }

    fn says(&self, words: &[&str]) -> bool {
        self.log.iter().any(|line| {
            let line = line.to_lowercase();
            words.iter().any(|word| line.contains(word))
        })
    }
}

/// The unit of the container runtime that a kubelet uses, by its flags, which win, its configuration, and what its version
/// does without either. `None` for a runtime that nobody here knows.
pub fn runtime_unit(flags: &str, endpoint: &str, version: Option<Version>) -> Option<&'static str> {
    let mut words = flags.split_whitespace();
    let (mut flagged, mut remote) = (None, false);
    while let Some(word) = words.next() {
        let (flag, value) = word
            .split_once('=')
            .unwrap_or_else(|| (word, words.next().unwrap_or_default()));
        match flag {
            "--container-runtime-endpoint" => flagged = Some(value),
            "--container-runtime" => remote = value == "remote",
            _ => {}
        }
    }
    let endpoint = flagged.unwrap_or(endpoint);
    let known = [
        ("dockershim", "docker"),
        ("cri-dockerd", "cri-docker"),
        ("containerd", "containerd"),
        ("crio", "crio"),
    ];
    let named = known
        .into_iter()
        .find(|(part, _)| endpoint.contains(part))
        .map(|(_, unit)| unit);
    match version {
        _ if named.is_some() => named,
        _ if !endpoint.trim_matches(['"', '\'', ' ']).is_empty() || remote => None,
        // 1.24 took dockershim away.
        Some(version) if version.minor < 24 => Some("docker"),
        Some(_) => Some("containerd"),
        None => None,
    }
}

/// The likeliest cause. What the API server answers comes first, since it does not guess; then the guest; then the log.
pub fn explain(facts: &Facts) -> Explanation {
    let guest = &facts.guest;
    let cluster = |because: Option<String>, help: String| Explanation {
        because,
        help,
        hopeless: false,
    };
    let lasting = |because: &str, help: String| Explanation {
        because: Some(because.to_owned()),
        help,
        hopeless: true,
    };
    let asks = facts.waited == Waited::Request;
    if let Some(explanation) = clock(facts) {
        return explanation;
    }
    if let Some(explanation) = crash(guest, &lasting) {
        return explanation;
    }
    match facts.token {
        TokenState::Gone if asks => {
            return cluster(
                None,
                "the token is gone from the cluster: it expired or was deleted while the node joined; run the same command again".into(),
            );
        }
        TokenState::Expired if asks => {
            return cluster(
                Some("the token has expired, and the cluster refuses it".into()),
                "are the clocks of this machine and of the API server right? a new token is made when you run the same command again"
                    .into(),
            );
        }
        _ => {}
    }
    if asks && !facts.may_request {
        return cluster(
            Some(format!(
                "the token is known, but {} in {} may not create certificatesigningrequests; the kubelet goes on as system:anonymous, who may do nothing",
                facts.user,
                facts.groups.join(", ")
            )),
            "no ClusterRoleBinding gives system:node-bootstrapper to that group: nodegraft access grant, or leave `access: ensure` in the spec"
                .into(),
        );
    }
    if facts.waited == Waited::Approval {
        return cluster(
            Some(format!(
                "nothing approves it: this kubeconfig may not, and no ClusterRoleBinding gives {} the right to {}",
                facts.groups.join(", "),
                "system:certificates.k8s.io:certificatesigningrequests:nodeclient"
            )),
            "nodegraft access grant, so that the controllers approve; or approve it by hand while the join waits: kubectl get csr".into(),
        );
    }
    if facts.waited == Waited::Certificate {
        return cluster(
            None,
            "the request is approved, but nobody signs it: is kube-controller-manager up, with --cluster-signing-cert-file and --cluster-signing-key-file?"
                .into(),
        );
    }
    if guest.says(&["signed by unknown authority"]) {
        return lasting(
            &format!("the kubelet does not trust the certificate that {} shows: the CA it was given did not sign it", facts.server),
            "is that address the API server of this kubeconfig? correct `cluster.server`, or take a fresh kubeconfig from the control plane".into(),
        );
    }
    if guest.says(&["x509: "]) {
        return cluster(
            Some(format!("the kubelet does not accept the certificate that {} shows", facts.server)),
            "its last lines say why: is the address among the certificate's names, and are both clocks right?".into(),
        );
    }
    if guest.says(&[
        "connection refused",
        "no route to host",
        "i/o timeout",
        "no such host",
        "network is unreachable",
    ]) {
        return cluster(
            None,
            format!(
                "the kubelet cannot reach {}: set `cluster.server` to an address that guests reach",
                facts.server
            ),
        );
    }
    if guest.says(&["unauthorized"]) {
        return cluster(
            Some("the API server does not accept the token".into()),
            "is --enable-bootstrap-token-auth on, and are the clocks right?".into(),
        );
    }
    if let Some(runtime) = &guest.runtime_down {
        return lasting(
            &format!("the container runtime is down: {runtime} does not run"),
            runtime_help(runtime, &facts.shell),
        );
    }
    if guest.crash_loops() {
        let last = guest.log.last().map_or("its log is empty", String::as_str);
        return cluster(
            Some(format!(
                "the kubelet does not stay up, systemd restarted it {} times: {last}",
                guest.restarts
            )),
            format!("read on: {} journalctl -u kubelet", facts.shell),
        );
    }
    cluster(
        None,
        format!("read on: {} journalctl -u kubelet", facts.shell),
    )
}

/// A little skew alone stops nobody: the kubelet must complain of it, or the clock be wrong by far.
fn clock(facts: &Facts) -> Option<Explanation> {
    const FAR: i64 = 3600;
    let (guest, shell) = (&facts.guest, &facts.shell);
    let skew = guest.skew.filter(|skew| skew.abs() >= SKEW)?;
    let refused = guest.says(&["expired or is not yet valid"]);
    if skew.abs() < FAR && !refused && !guest.says(&["unauthorized"]) {
        return None;
    }
    Some(Explanation {
        because: Some(format!(
            "the guest's clock is {}: certificates and tokens that are valid look invalid there",
            off_by(skew)
        )),
        help: format!(
            "set it, and let a time service keep it (the profile's `ntp_servers`): {shell} timedatectl"
        ),
        hopeless: refused,
    })
}

/// How a clock stands to the API server's, by the seconds it is ahead.
pub fn off_by(skew: i64) -> String {
    format!(
        "{} s {} the API server's",
        skew.abs(),
        if skew > 0 { "ahead of" } else { "behind" }
    )
}

/// Why a kubelet does not stay up.
fn crash(guest: &Guest, lasting: &impl Fn(&str, String) -> Explanation) -> Option<Explanation> {
    if !guest.crash_loops() {
        return None;
    }
    if guest.says(&["cgroup driver"]) {
        return Some(lasting(
            "the kubelet ends again and again: its cgroup driver is not the container runtime's",
            "make both systemd: native.cgroupdriver=systemd in docker's daemon.json, SystemdCgroup = true in containerd's config.toml, cgroupDriver: systemd for the kubelet"
                .into(),
        ));
    }
    if guest.says(&["running with swap on"]) || (guest.swap && guest.says(&["swap"])) {
        return Some(lasting(
            "the kubelet ends again and again: swap is on",
            "swapoff -a, and take the swap line out of /etc/fstab; the profiles' step `init` does both".into(),
        ));
    }
    if guest.config_missing {
        return Some(lasting(
            "the kubelet ends again and again: /var/lib/kubelet/config.yaml is missing",
            "the profiles' step `kubelet` writes it; on a machine of your own, write one first"
                .into(),
        ));
    }
    if let Some(runtime) = &guest.runtime_down {
        return Some(lasting(
            &format!(
                "the kubelet ends again and again: the container runtime is down, {runtime} does not run"
            ),
            format!(
                "see why: systemctl status {runtime}; then start it: systemctl start {runtime}"
            ),
        ));
    }
    None
}

fn runtime_help(runtime: &str, shell: &str) -> String {
    format!("see why: {shell} systemctl status {runtime}; then start it: systemctl start {runtime}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(change: impl FnOnce(&mut Facts)) -> Facts {
        let mut facts = Facts {
            waited: Waited::Request,
            server: "https://192.168.3.101:6443".into(),
            token: TokenState::Alive,
            user: "system:bootstrap:abcdef".into(),
            groups: vec!["system:bootstrappers".into()],
            may_request: true,
            shell: "nodegraft exec n1 --".into(),
            guest: Guest {
                kubelet: "active".into(),
                ..Guest::default()
            },
        };
        change(&mut facts);
        facts
    }

    fn told(change: impl FnOnce(&mut Facts)) -> String {
        let explanation = explain(&facts(change));
        format!(
            "{} | {}",
            explanation.because.unwrap_or_default(),
            explanation.help
        )
    }

    #[test]
    fn each_trouble_is_told_by_its_name() {
        let log = |line: &str| vec![line.to_owned()];
        assert!(told(|f| f.token = TokenState::Gone).contains("gone from the cluster"));
        assert!(told(|f| f.token = TokenState::Expired).contains("expired"));
        assert!(told(|f| f.may_request = false).contains("system:anonymous"));
        assert!(told(|f| f.waited = Waited::Approval).contains("nothing approves it"));
        assert!(told(|f| f.waited = Waited::Certificate).contains("nobody signs it"));
        assert!(told(|f| f.guest.skew = Some(-3600)).contains("3600 s behind"));
        assert!(
            told(|f| f.guest.log = log("x509: certificate signed by unknown authority"))
                .contains("did not sign it")
        );
        assert!(
            told(|f| f.guest.log = log("dial tcp: connect: connection refused"))
                .contains("cannot reach")
        );
        assert!(told(|f| f.guest.log = log("Unauthorized")).contains("does not accept the token"));
        assert!(
            told(|f| f.guest.runtime_down = Some("docker".into())).contains("docker does not run")
        );
        let fatal = "F1124 docker_service.go:412] Streaming server stopped unexpectedly: listen tcp: lookup localhost: no answer";
        let unknown = told(|f| {
            f.guest = Guest {
                kubelet: "activating".into(),
                restarts: 46,
                log: log(fatal),
                ..Guest::default()
            }
        });
        assert!(
            unknown.contains("46 times") && unknown.contains("lookup localhost"),
            "{unknown}"
        );
        assert!(told(|_| ()).contains("journalctl -u kubelet"));
    }

    #[test]
    fn a_kubelet_that_does_not_stay_up_is_told_before_what_it_could_not_do() {
        let crash = |line: &str, change: fn(&mut Guest)| {
            let explanation = explain(&facts(|f| {
                f.guest.restarts = CRASH_LOOP;
                f.guest.log = vec![line.to_owned()];
                change(&mut f.guest);
            }));
            assert!(explanation.hopeless, "{explanation:?}");
            explanation.because.unwrap_or_default()
        };
        let cgroup = "failed to run Kubelet: misconfiguration: kubelet cgroup driver: \"cgroupfs\" is different from docker cgroup driver: \"systemd\"";
        assert!(crash(cgroup, |_| ()).contains("cgroup driver"));
        assert!(
            crash("running with swap on is not supported", |g| g.swap = true)
                .contains("swap is on")
        );
        assert!(
            crash("failed to load kubelet config file", |g| g.config_missing =
                true)
            .contains("config.yaml is missing")
        );
        assert!(
            crash("connect: no such file or directory", |g| g.runtime_down =
                Some("containerd".into()))
            .contains("containerd")
        );
    }

    #[test]
    fn a_kubelets_runtime_is_told_by_its_flags_its_configuration_and_its_version() {
        // Flags, the configuration's endpoint, version, and the runtime's unit.
        let cases = [
            (
                "",
                "unix:///run/containerd/containerd.sock",
                "1.35.4",
                Some("containerd"),
            ),
            (
                "",
                "\"unix:///var/run/crio/crio.sock\"",
                "1.30.0",
                Some("crio"),
            ),
            (
                "",
                "unix:///run/cri-dockerd.sock",
                "1.30.0",
                Some("cri-docker"),
            ),
            (
                "--container-runtime-endpoint=unix:///run/crio/crio.sock",
                "unix:///run/containerd/containerd.sock",
                "1.30.0",
                Some("crio"),
            ),
            (
                "--container-runtime=remote --container-runtime-endpoint unix:///run/containerd/containerd.sock",
                "",
                "1.18.3",
                Some("containerd"),
            ),
            (
                "--container-runtime-endpoint=unix:///var/run/dockershim.sock",
                "",
                "1.20.2",
                Some("docker"),
            ),
            ("", "", "1.18.3", Some("docker")),
            ("--container-runtime=docker", "", "1.23.9", Some("docker")),
            ("", "", "1.24.0", Some("containerd")),
            ("", "unix:///run/frakti.sock", "1.18.3", None),
            ("--container-runtime=remote", "", "1.18.3", None),
            ("", "", "unknown", None),
        ];
        for (flags, endpoint, version, unit) in cases {
            assert_eq!(
                runtime_unit(flags, endpoint, Version::parse(version)),
                unit,
                "{flags} {endpoint} {version}"
            );
        }
    }

    #[test]
    fn what_others_may_still_change_is_waited_for() {
        // A kubelet whose request is forbidden ends, too, and succeeds as soon as somebody grants the right.
        let explanation = explain(&facts(|f| {
            f.may_request = false;
            f.guest.restarts = CRASH_LOOP;
        }));
        assert!(!explanation.hopeless && explanation.help.contains("access grant"));
    }
}
