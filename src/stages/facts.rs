//! Collects the facts of a join that is stuck, for `diagnosis.rs` to explain.

use std::time::Duration;

use super::candidate::Candidate;
use crate::core::diagnosis::{
    Explanation, Facts, Guest, SKEW, TokenState, Waited, explain, runtime_unit,
};
use crate::core::error::{Error, Result};
use crate::core::kubelet::Version;
use crate::rooms::ssh::Session;

const SHORT: Duration = Duration::from_secs(30);
const SHOWN: usize = 8;

/// A line `key=value` for each fact. A runtime is down if its unit is there and does not run; whether this kubelet uses it
/// is told by the flags of its unit and of the unit's environment files, its configuration, and its version.
const LOOK: &str = r#"
echo "kubelet=$(systemctl is-active kubelet 2>/dev/null)"
[ -s /var/lib/kubelet/config.yaml ] || echo config=missing
[ "$(wc -l </proc/swaps)" -le 1 ] || echo swap=on
for unit in containerd crio docker cri-docker; do
  [ "$(systemctl show $unit -p LoadState 2>/dev/null)" != LoadState=loaded ] || systemctl is-active -q $unit || echo down=$unit
done
echo "version=$(kubelet --version 2>/dev/null)"
echo "endpoint=$(sed -n 's/^containerRuntimeEndpoint:[[:space:]]*//p' /var/lib/kubelet/config.yaml 2>/dev/null)"
unit=$(systemctl cat kubelet 2>/dev/null | grep -v '^[[:space:]]*[#;]')
files=$(echo "$unit" | sed -n 's/^EnvironmentFile=-*//p')
flags=$({ echo "$unit"; [ -z "$files" ] || cat $files; } 2>/dev/null | grep -o -e '--container-runtime[a-z-]*[= ][^ "]*' | tr '\n' ' ')
echo "flags=$flags"
"#;

/// The machine's clock when its join began, and how far it is off.
#[derive(Debug, Clone, Copy)]
pub struct Begun {
    /// Seconds since 1970, by the machine's own clock.
    pub at: i64,
    /// Seconds by which that clock is ahead of the API server's.
    pub skew: Option<i64>,
}

impl Begun {
    /// Reads the machine's clock. `server` is the API server's, asked just before.
    pub async fn now(session: &Session, server: Option<i64>) -> Result<Self> {
        let at = session
            .output("date +%s", SHORT)
            .await?
            .trim()
            .parse()
            .unwrap_or(0);
        Ok(Self {
            at,
            skew: server.map(|server| at - server),
        })
    }

    /// The same clock, some time earlier.
    pub fn before(self, earlier: Duration) -> Self {
        Self {
            at: self.at - i64::try_from(earlier.as_secs()).unwrap_or(0),
            ..self
        }
    }

    pub fn is_off(&self) -> bool {
        self.skew.is_some_and(|skew| skew.abs() >= SKEW)
    }
}

/// What the API server knows of a token: its state, its user, its groups, whether it may ask.
pub struct Known {
    pub token: TokenState,
    pub user: String,
    pub groups: Vec<String>,
    pub may_request: bool,
}

impl Known {
    /// For a join whose token has done its work.
    pub fn nothing() -> Self {
        Self {
            token: TokenState::Alive,
            user: String::new(),
            groups: Vec::new(),
            may_request: true,
        }
    }
}

/// How often systemd restarted the kubelet since somebody last started it. 0 where systemd does not count.
pub async fn restarts(session: &Session) -> u32 {
    let shown = session
        .output("systemctl show kubelet -p NRestarts", SHORT)
        .await
        .unwrap_or_default();
    shown
        .trim()
        .strip_prefix("NRestarts=")
        .and_then(|count| count.parse().ok())
        .unwrap_or(0)
}

/// Looks at the machine.
pub async fn guest(session: &Session, begun: Begun) -> Guest {
    let found = session.output(LOOK, SHORT).await.unwrap_or_default();
    Guest {
        restarts: restarts(session).await,
        skew: begun.skew,
        log: log(session, begun).await,
        ..parse(&found)
    }
}

fn parse(found: &str) -> Guest {
    let pairs: Vec<(&str, &str)> = found
        .lines()
        .filter_map(|line| line.split_once('='))
        .collect();
    let value = |key: &str| {
        pairs
            .iter()
            .find(|(has, _)| *has == key)
            .map_or("", |(_, value)| value)
    };
    let version = value("version")
        .split_whitespace()
        .last()
        .and_then(Version::parse);
    let runtime = runtime_unit(value("flags"), value("endpoint"), version);
    Guest {
        kubelet: value("kubelet").to_owned(),
        config_missing: !value("config").is_empty(),
        swap: !value("swap").is_empty(),
        runtime_down: runtime
            .filter(|unit| pairs.contains(&("down", *unit)))
            .map(str::to_owned),
        ..Guest::default()
    }
}

/// The kubelet's last errors; an old one repeats `node not found` ten times a second, which helps nobody.
async fn log(session: &Session, begun: Begun) -> Vec<String> {
    let errors = format!(
        "journalctl -u kubelet --since @{} -n 1000 --no-pager -o cat 2>/dev/null | grep -E '^[EF][0-9]{{4}} |[Ee]rror|panic|failed' | grep -v 'not found$' | tail -n {SHOWN} || true",
        begun.at
    );
    let log = session.output(&errors, SHORT).await.unwrap_or_default();
    log.lines()
        .map(|line| line.chars().take(400).collect())
        .collect()
}

/// Everything, put together.
pub async fn facts<C: Candidate>(
    on: &C,
    session: &Session,
    begun: Begun,
    waited: Waited,
    known: Known,
) -> Facts {
    Facts {
        waited,
        server: server(on).to_owned(),
        token: known.token,
        user: known.user,
        groups: known.groups,
        may_request: known.may_request,
        shell: on.member().shell.clone(),
        guest: guest(session, begun).await,
    }
}

/// The error that tells it.
pub fn error(what: String, facts: &Facts) -> Error {
    let Explanation { because, help, .. } = explain(facts);
    let mut error = Error::failed(what).with_help(help);
    if let Some(because) = because {
        error = error.because(because);
    }
    if facts.guest.log.is_empty() {
        return error;
    }
    error.with_detail(
        std::iter::once("the kubelet's last lines:".to_owned())
            .chain(facts.guest.log.iter().map(|line| format!("  {line}"))),
    )
}

/// The API server's URL as the machine is told it.
pub fn server<C: Candidate>(on: &C) -> &str {
    on.terms().server.as_deref().unwrap_or(&on.cluster().server)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::process::Command;

    /// Looks at a machine of fake programs. `unit` is the kubelet's.
    fn look(unit: &str, version: &str, down: &str) -> Guest {
        let dir = tempfile::tempdir().unwrap();
        let program = |name: &str, script: String| {
            let path = dir.path().join(name);
            std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        };
        program("kubelet", format!("echo 'Kubernetes {version}'"));
        std::fs::write(
            dir.path().join("unit"),
            unit.replace("DIR", &dir.path().display().to_string()),
        )
        .unwrap();
        std::fs::write(
            dir.path().join("flags.env"),
            "KUBELET_ARGS=\"--v=2 --container-runtime-endpoint=unix:///run/crio/crio.sock\"\n",
        )
        .unwrap();
        let at = dir.path().display();
        program(
            "systemctl",
            format!(
                "case $1 in\n  cat) cat {at}/unit;;\n  show) echo LoadState=loaded;;\n  is-active) case \" {down} \" in *\" $3 \"*) exit 3;; esac; [ \"$2\" = -q ] || echo active;;\nesac"
            ),
        );
        let path = format!("{at}:{}", std::env::var("PATH").unwrap());
        let output = Command::new("bash")
            .args(["-c", LOOK])
            .env("PATH", path)
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        parse(&String::from_utf8(output.stdout).unwrap())
    }

    #[test]
    fn only_the_runtime_that_the_kubelet_uses_counts() {
        let containerd = "[Service]\n# --container-runtime-endpoint=unix:///var/run/dockershim.sock\nExecStart=/usr/bin/kubelet \\\n  --container-runtime=remote \\\n  --container-runtime-endpoint=unix:///run/containerd/containerd.sock\n";
        let plain = "[Service]\nExecStart=/usr/bin/kubelet --v=2\n";
        let from_file = "[Service]\nEnvironmentFile=-DIR/flags.env\nEnvironmentFile=-DIR/none\nExecStart=/usr/bin/kubelet $KUBELET_ARGS\n";
        // The kubelet's unit, its version, the units that are down, and the one that counts.
        let cases = [
            (containerd, "v1.23.1", "docker", None),
            (
                containerd,
                "v1.23.1",
                "docker containerd",
                Some("containerd"),
            ),
            (plain, "v1.35.4", "docker", None),
            (plain, "v1.35.4", "docker containerd", Some("containerd")),
            (plain, "v1.18.3", "docker containerd", Some("docker")),
            (plain, "v1.18.3", "containerd", None),
            (from_file, "v1.30.0", "docker containerd", None),
            (from_file, "v1.30.0", "containerd crio", Some("crio")),
        ];
        for (unit, version, down, counts) in cases {
            let guest = look(unit, version, down);
            assert_eq!(
                guest.runtime_down.as_deref(),
                counts,
                "{version}, {down} down, {unit}"
            );
            assert_eq!(guest.kubelet, "active");
        }
    }
}
