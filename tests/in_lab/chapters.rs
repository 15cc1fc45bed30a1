//! The seed's chapters 3 to 8 as commands, on the seed's own version and on today's; and leaving, chapter 9's first lines.

use std::fs;
use std::time::Duration;

use nodegraft::rooms::cluster::Cluster;
use tokio_util::sync::CancellationToken;

use super::{GRANTS, NEW, OLD, World, eventually, kubectl, kubectl_output, kubernetes, must, text};

fn kubeconfig(version: &str) -> String {
    kubernetes(version).join("admin.conf").display().to_string()
}

/// Chapters 3, 4 and 6: a token is made, is what Kubernetes takes for one, is listed without its secret, and goes.
#[test]
#[ignore = "needs the lab: make test"]
fn tokens_on_both_versions() {
    for version in [OLD, NEW] {
        let world = World::new(
            "tokens",
            version,
            &["{name: tokens, address: 192.168.3.150/24}"],
            |spec| spec,
        );
        let admin = kubeconfig(version);
        let with = |args: &[&str]| world.run(&[args, &["--kubeconfig", &admin]].concat());
        let made = with(&[
            "token",
            "create",
            "--ttl",
            "10m",
            "--description",
            "a test",
            "--extra-group",
            "system:bootstrappers:test",
        ]);
        assert_eq!(made.code, 0, "{}", made.stderr);
        let token = made.stdout.trim().to_owned();
        let (id, secret) = token.split_once('.').unwrap();
        // The API server itself takes its bearer for system:bootstrap:<id>, and knows nobody by another secret.
        let whoami = |bearer: &str| {
            let ca = kubernetes(version).join("pki/ca.crt");
            let server = if version == OLD {
                "https://192.168.3.102:6443"
            } else {
                "https://192.168.3.101:6443"
            };
            let url = format!("{server}/api/v1/nodes");
            let output = std::process::Command::new("curl")
                .args([
                    "-s",
                    "--cacert",
                    ca.to_str().unwrap(),
                    "-H",
                    &format!("Authorization: Bearer {bearer}"),
                    &url,
                ])
                .output()
                .unwrap();
            text(&output)
        };
        eventually(Duration::from_secs(20), "the token to be known", || {
            whoami(&token).contains(&format!("User \\\"system:bootstrap:{id}\\\""))
        });
        assert!(!whoami(&format!("{id}.{}", "0".repeat(16))).contains("system:bootstrap"));
        let list = with(&["token", "list"]);
        assert!(
            list.stdout.contains(id)
                && !list.stdout.contains(secret)
                && list.stdout.contains("a test"),
            "{}",
            list.stdout
        );
        assert!(
            with(&["token", "list", "--show-secrets"])
                .stdout
                .contains(secret)
        );
        let again = with(&["token", "create", &token]);
        assert_eq!(
            (again.code, again.stdout.as_str()),
            (4, ""),
            "a token is never replaced"
        );
        // The manifest is one that kubectl takes as it is.
        let manifest = world.run(&[
            "token",
            "create",
            "398c7c.b18a35f794625922",
            "--ttl",
            "0",
            "--dry-run",
            "-o",
            "yaml",
        ]);
        let file = world.dir.path().join("token.yaml");
        fs::write(&file, &manifest.stdout).unwrap();
        let applied = kubectl_output(
            version,
            &["create", "--validate=false", "-f", file.to_str().unwrap()],
        );
        assert!(applied.status.success(), "{}", text(&applied));
        assert_eq!(with(&["token", "delete", "398c7c", &token]).code, 0);
        assert!(!with(&["token", "list"]).stdout.contains(id));
    }
}

/// Chapter 7, on both versions: the file has the seed's names, works, and is nobody else's to read.
#[test]
#[ignore = "needs the lab: make test"]
fn the_bootstrap_kubeconfig_works() {
    for version in [OLD, NEW] {
        let world = World::new(
            "kubeconfig",
            version,
            &["{name: kubeconfig, address: 192.168.3.151/24}"],
            |spec| spec,
        );
        let admin = kubeconfig(version);
        let token = world
            .run(&["token", "create", "--ttl", "10m", "--kubeconfig", &admin])
            .stdout
            .trim()
            .to_owned();
        let file = world.dir.path().join("bootstrap-kubelet.conf");
        let path = file.to_str().unwrap();
        let write = [
            "kubeconfig",
            "bootstrap",
            "--kubeconfig",
            &admin,
            "--token",
            &token,
            "--write",
            path,
        ];
        assert_eq!(world.run(&write).code, 0);
        assert_eq!(
            std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&file).unwrap().permissions())
                & 0o777,
            0o600
        );
        assert_ne!(
            world.run(&write).code,
            0,
            "a file that exists is not overwritten"
        );
        let kubectl = std::path::PathBuf::from(std::env::var("NODEGRAFT_LAB_KUBERNETES").unwrap())
            .join(NEW)
            .join("kubectl");
        let run = |args: &[&str]| {
            text(
                &std::process::Command::new(&kubectl)
                    .args(["--kubeconfig", path])
                    .args(args)
                    .output()
                    .unwrap(),
            )
        };
        assert_eq!(
            run(&["config", "current-context"]).trim(),
            "kubelet-bootstrap@kubernetes"
        );
        assert_eq!(
            run(&[
                "config",
                "view",
                "-o",
                "jsonpath={.clusters[0].name} {.users[0].name}"
            ])
            .trim(),
            "kubernetes kubelet-bootstrap"
        );
        eventually(Duration::from_secs(20), "the token to be known", || {
            run(&["get", "--raw", "/api/v1/nodes"]).contains("system:bootstrap:")
        });
        world.run(&["token", "delete", &token, "--kubeconfig", &admin]);
    }
}

/// Chapter 8, there and back, on both versions; what somebody else made stays.
#[test]
#[ignore = "needs the lab: make test"]
fn access_is_checked_granted_and_revoked() {
    let _grants = GRANTS
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    for version in [OLD, NEW] {
        let world = World::new(
            "access",
            version,
            &["{name: access, address: 192.168.3.152/24}"],
            |spec| spec,
        );
        let admin = kubeconfig(version);
        let with = |args: &[&str]| world.run(&[args, &["--kubeconfig", &admin]].concat());
        // The API server's own answer, not through nodegraft.
        let review = world.dir.path().join("review.json");
        fs::write(
            &review,
            r#"{"apiVersion":"authorization.k8s.io/v1","kind":"SubjectAccessReview","spec":{"user":"system:bootstrap:abcdef","groups":["system:bootstrappers:access-test"],
               "resourceAttributes":{"verb":"create","group":"certificates.k8s.io","resource":"certificatesigningrequests"}}}"#,
        )
        .unwrap();
        let may = || {
            kubectl(
                version,
                &[
                    "create",
                    "--raw",
                    "/apis/authorization.k8s.io/v1/subjectaccessreviews",
                    "-f",
                    review.to_str().unwrap(),
                ],
            )
            .contains("\"allowed\":true")
        };
        let before = with(&[
            "access",
            "check",
            "--group",
            "system:bootstrappers:access-test",
        ]);
        assert_eq!(before.code, 4);
        assert!(
            before.stdout.contains("no   tokens may ask")
                && before.stdout.contains("nodegraft access grant"),
            "{}",
            before.stdout
        );
        assert!(!may());
        // A group of this test's own: the wide one would let other tests in.
        let granted = with(&[
            "access",
            "grant",
            "--no-auto-approve",
            "--group",
            "system:bootstrappers:access-test",
        ]);
        assert_eq!(granted.code, 0, "{}", granted.stderr);
        eventually(Duration::from_secs(20), "the binding to take effect", may);
        let after = with(&[
            "access",
            "check",
            "--group",
            "system:bootstrappers:access-test",
        ]);
        assert_eq!(after.code, 0);
        assert!(
            after
                .stdout
                .contains("yes  tokens may ask for certificates  (by kubelet-bootstrap)"),
            "{}",
            after.stdout
        );
        let another = with(&[
            "access",
            "grant",
            "--no-auto-approve",
            "--group",
            "system:bootstrappers:other",
        ]);
        assert_ne!(
            another.code, 0,
            "a binding of another group is not replaced"
        );
        assert_eq!(with(&["access", "revoke"]).code, 0);
        eventually(Duration::from_secs(20), "the binding to be gone", || !may());
        // The seed's own command makes a binding without our mark: `revoke` leaves it.
        kubectl(
            version,
            &[
                "create",
                "clusterrolebinding",
                "kubelet-bootstrap",
                "--clusterrole=system:node-bootstrapper",
                "--group=system:bootstrappers:access-test",
            ],
        );
        assert!(
            with(&["access", "revoke"])
                .stdout
                .contains("kubelet-bootstrap: none of ours")
        );
        assert!(may());
        kubectl(
            version,
            &["delete", "clusterrolebinding", "kubelet-bootstrap"],
        );
    }
}

/// Leaving: pods are evicted as their budgets allow, those of DaemonSets are left, and a budget that allows nothing is
/// named. The Node and its pods exist only in the API server.
#[test]
#[ignore = "needs the lab: make test"]
fn a_drain_respects_disruption_budgets() {
    for (version, policy) in [(OLD, "policy/v1beta1"), (NEW, "policy/v1")] {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pods.yaml");
        let pod = |name: &str, more: &str| {
            format!(
                "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: default, labels: {{app: {name}}}{more}}}\nspec:\n  nodeName: drained\n  terminationGracePeriodSeconds: 0\n  automountServiceAccountToken: false\n  containers: [{{name: c, image: none}}]\n"
            )
        };
        // Of a kind that the garbage collector cannot look up: an owner it knows to be absent would take the pod along.
        let owner = ", ownerReferences: [{apiVersion: apps.example.com/v1, kind: DaemonSet, name: daemon, uid: 00000000-0000-0000-0000-000000000001, controller: true}]";
        let manifest = format!(
            "apiVersion: v1\nkind: Node\nmetadata: {{name: drained}}\n{}{}{}---\napiVersion: {policy}\nkind: PodDisruptionBudget\nmetadata: {{name: keep, namespace: default}}\nspec:\n  minAvailable: 1\n  selector: {{matchLabels: {{app: kept}}}}\n",
            pod("free", ""),
            pod("kept", ""),
            pod("daemon", owner)
        );
        fs::write(&file, manifest).unwrap();
        eventually(
            Duration::from_secs(60),
            "the default service account",
            || {
                kubectl_output(
                    version,
                    &[
                        "get",
                        "--raw",
                        "/api/v1/namespaces/default/serviceaccounts/default",
                    ],
                )
                .status
                .success()
            },
        );
        kubectl(
            version,
            &["create", "--validate=false", "-f", file.to_str().unwrap()],
        );
        for name in ["free", "kept", "daemon"] {
            let status =
                r#"{"status":{"phase":"Running","conditions":[{"type":"Ready","status":"True"}]}}"#;
            patch_status(version, name, status);
        }
        eventually(Duration::from_secs(60), "the budget to be counted", || {
            let budget = kubectl(
                version,
                &[
                    "get",
                    "--raw",
                    &format!("/apis/{policy}/namespaces/default/poddisruptionbudgets/keep"),
                ],
            );
            budget.contains("\"currentHealthy\":1")
        });
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .unwrap();
        let drain = |limit| {
            runtime.block_on(async {
                let cluster = Cluster::from_text(
                    &fs::read_to_string(kubernetes(version).join("admin.conf")).unwrap(),
                    "the lab",
                    None,
                )
                .await
                .unwrap();
                // It has no kubelet, and no lease: an accepted eviction is enough.
                let node = cluster.node("drained").await.unwrap().unwrap();
                cluster
                    .drain(
                        &node,
                        Duration::from_secs(limit),
                        &CancellationToken::new(),
                        |_| {},
                    )
                    .await
            })
        };
        let refused = drain(4).unwrap_err();
        let all = nodegraft::core::error::one_line(&refused);
        assert!(
            all.contains("was not drained within 4 s")
                && all.contains("default/kept is held back")
                && all.contains("budget"),
            "{all}"
        );
        let cordoned = || {
            kubectl(version, &["get", "--raw", "/api/v1/nodes/drained"])
                .contains("\"unschedulable\":true")
        };
        assert!(
            !cordoned(),
            "a drain that was given up left the Node cordoned"
        );
        let exists = |name: &str| {
            kubectl_output(
                version,
                &[
                    "get",
                    "--raw",
                    &format!("/api/v1/namespaces/default/pods/{name}"),
                ],
            )
            .status
            .success()
        };
        assert!(
            exists("kept") && exists("daemon"),
            "a pod that must stay is gone"
        );
        kubectl(
            version,
            &[
                "delete",
                "--raw",
                &format!("/apis/{policy}/namespaces/default/poddisruptionbudgets/keep"),
            ],
        );
        drain(30).unwrap();
        assert!(cordoned());
        eventually(
            Duration::from_secs(30),
            "the evicted pods to be gone",
            || !exists("kept") && !exists("free"),
        );
        assert!(exists("daemon"));
        kubectl(
            version,
            &["delete", "--raw", "/api/v1/namespaces/default/pods/daemon"],
        );
        kubectl(version, &["delete", "--raw", "/api/v1/nodes/drained"]);
    }
}

fn patch_status(version: &str, pod: &str, status: &str) {
    let dir = kubernetes(version);
    let path = |name: &str| dir.join(name).display().to_string();
    let server = if version == OLD {
        "https://192.168.3.102:6443"
    } else {
        "https://192.168.3.101:6443"
    };
    let url = format!("{server}/api/v1/namespaces/default/pods/{pod}/status");
    must(
        "curl",
        &[
            "-sf",
            "--cacert",
            &path("pki/ca.crt"),
            "--cert",
            &path("admin.crt"),
            "--key",
            &path("admin.key"),
            "-X",
            "PATCH",
            "-H",
            "Content-Type: application/merge-patch+json",
            "-d",
            status,
            &url,
        ],
    );
}

/// `create` on a pseudo-terminal.
struct Conversation {
    child: std::process::Child,
    keys: std::process::ChildStdin,
    screen: std::process::ChildStdout,
    seen: String,
}

impl Conversation {
    fn begin(world: &World, template: &str) -> Self {
        use std::process::{Command, Stdio};
        let uri = std::env::var("NODEGRAFT_LAB_URI").unwrap();
        let line = format!(
            "{} create --uri '{uri}' --pool kvmimage --bridge br0 --template {template}",
            env!("CARGO_BIN_EXE_nodegraft")
        );
        let mut child = Command::new("script")
            .args(["-qfec", &line, "/dev/null"])
            .env("HOME", world.dir.path())
            .env("NODEGRAFT_STATE_DIR", world.dir.path().join("state"))
            .env("TERM", "xterm")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (keys, screen) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        Self {
            child,
            keys,
            screen,
            seen: String::new(),
        }
    }

    /// What is on the screen up to these words.
    fn wait_for(&mut self, words: &str) -> String {
        use std::io::Read;
        let mut buffer = [0; 4096];
        while !self.seen.contains(words) {
            let read = self.screen.read(&mut buffer).unwrap();
            assert!(read > 0, "`{words}` never came:\n{}", self.seen);
            self.seen
                .push_str(&String::from_utf8_lossy(&buffer[..read]));
        }
        let end = self.seen.find(words).unwrap() + words.len();
        self.seen.drain(..end).collect()
    }

    fn answer(&mut self, answer: &str, next: &str) -> String {
        use std::io::Write;
        self.keys.write_all(answer.as_bytes()).unwrap();
        self.wait_for(next)
    }

    fn ends_well(mut self) -> bool {
        self.child.wait().unwrap().success()
    }
}

fn machine(name: &'static str, address: &str) -> World {
    World::new(
        name,
        NEW,
        &[&format!("{{name: {address}, address: {address}/24}}")],
        |spec| spec.replace("cluster:\n", "cluster:\n  join: false\n"),
    )
}

/// Chapter 2, `create_vm.sh`: prompt by prompt. A wrong answer is asked for again.
#[test]
#[ignore = "needs the lab: make test"]
fn create_asks_what_the_flags_leave_open() {
    let world = machine("default", "192.168.3.153");
    let mut create = Conversation::begin(&world, "tiny.qcow2");
    let begun = create.wait_for("Name of the VM");
    assert!(
        begun.contains("has the template tiny.qcow2"),
        "pool and template are looked at first, and it says so"
    );
    create.answer("192.168.3.153\r", "Disk, in G");
    create.answer("1\r", "Memory, in M");
    create.answer("256\r", "CPUs");
    create.answer("none\r", "a number from 1 on");
    create.answer("\u{15}1\r", "Address");
    create.answer("\r", "Netmask");
    create.answer("255.255.255.0\r", "Gateway");
    create.answer("\r", "DNS server");
    let shown = create.answer("\r", "Go on with this?");
    assert!(
        shown.contains("192.168.3.153/24") && shown.contains("via: \"192.168.3.1\""),
        "the network as it will be:\n{shown}"
    );
    create.answer("y", "ssh -i ");
    assert!(create.ends_well());
    assert_eq!(
        super::virsh(&["domstate", "192.168.3.153"]).trim(),
        "running"
    );
    assert_eq!(
        world.guest("192.168.3.153", "hostname").trim(),
        "node-192-168-3-153"
    );
    // The spec it kept is one that `down` takes.
    let kept = world
        .dir
        .path()
        .join("state/default/192.168.3.153/spec.yaml");
    assert_eq!(world.run(&["down", "-f", kept.to_str().unwrap()]).code, 0);
    world.assert_nothing_left();
}

/// For the seed's own template it shows the seed's own file, and `n` makes nothing.
#[test]
#[ignore = "needs the lab: make test"]
fn create_shows_the_seeds_ifcfg_for_the_seeds_template() {
    let template = "CentOS7.6.1810.x86_64.qcow2";
    let base = [
        "--backing-vol",
        "debian12.qcow2",
        "--backing-vol-format",
        "qcow2",
    ];
    super::virsh(
        &[
            &[
                "vol-create-as",
                "kvmimage",
                template,
                "3G",
                "--format",
                "qcow2",
            ][..],
            &base,
        ]
        .concat(),
    );
    let world = machine("declined", "192.168.3.154");
    let mut create = Conversation::begin(&world, template);
    create.wait_for("Name of the VM");
    for (answer, next) in [
        ("192.168.3.154\r", "Disk, in G"),
        ("40\r", "Memory, in M"),
        ("4096\r", "CPUs"),
        ("2\r", "Address"),
        ("\r", "Netmask"),
        ("\r", "Gateway"),
        ("\r", "DNS server"),
    ] {
        create.answer(answer, next);
    }
    let shown = create
        .answer("223.5.5.5\r", "Go on with this?")
        .replace('\r', "");
    let ifcfg = "NAME=eth0\nDEVICE=eth0\nONBOOT=yes\nTYPE=Ethernet\nBOOTPROTO=none\nIPADDR=192.168.3.154\nNETMASK=255.255.255.0\nGATEWAY=192.168.3.1\nDNS1=223.5.5.5\n";
    assert!(shown.contains(ifcfg), "{shown}");
    create.answer("n", "nothing was made");
    assert!(!create.ends_well());
    assert!(!super::virsh(&["list", "--all", "--name"]).contains("192.168.3.154"));
    assert!(!super::virsh(&["vol-list", "kvmimage"]).contains("nodegraft.default.192.168.3.154"));
    super::virsh(&["vol-delete", "--pool", "kvmimage", template]);
}
