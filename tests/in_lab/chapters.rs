//! The seed's chapters 3 to 8 as commands, on the seed's own version and on today's; and leaving, chapter 9's first lines.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::Duration;

use nodegraft::rooms::cluster::Cluster;
use tokio_util::sync::CancellationToken;

use super::kubernetes::{self, admin, create, grants, kubectl, kubectl_as, kubernetes, server};
use super::libvirt::{POOL, has_domain, runs, uri, virsh, volumes};
use super::{NEW, OLD, World, eventually, must, text};
use crate::fixture::{Exit, Home, Ran};

/// A user with a kubeconfig and no spec of their own.
struct User {
    home: Home,
    admin: String,
}

impl User {
    fn of(version: &str) -> Self {
        Self {
            home: Home::of("").shown_as(version),
            admin: admin(version),
        }
    }

    fn run(&self, args: &[&str]) -> Ran {
        self.home
            .run(&[args, &["--kubeconfig", &self.admin]].concat())
    }
}

/// Chapters 3, 4 and 6: a token is made, is what Kubernetes takes for one, is listed without its secret, and goes.
#[test]
#[ignore = "needs the lab: make test"]
fn tokens_on_both_versions() {
    for version in [OLD, NEW] {
        let user = User::of(version);
        let made = user.run(&[
            "token",
            "create",
            "--ttl",
            "10m",
            "--description",
            "a test",
            "--extra-group",
            "system:bootstrappers:test",
        ]);
        made.exits(Exit::Done);
        let token = made.stdout.trim();
        let (id, secret) = token.split_once('.').unwrap();
        // The API server itself takes its bearer for system:bootstrap:<id>, and knows nobody by another secret.
        eventually(Duration::from_secs(20), "the token to be known", || {
            who_is(version, token).contains(&format!("User \\\"system:bootstrap:{id}\\\""))
        });
        let wrong = format!("{id}.{}", "0".repeat(16));
        assert!(!who_is(version, &wrong).contains("system:bootstrap"));
        user.run(&["token", "list"])
            .exits(Exit::Done)
            .prints_all(&[id, "a test"])
            .never_prints(secret);
        user.run(&["token", "list", "--show-secrets"])
            .exits(Exit::Done)
            .prints(secret);
        // A token is never replaced.
        user.run(&["token", "create", token])
            .exits(Exit::Unfit)
            .prints_nothing();
        // The manifest is one that kubectl takes as it is.
        let known = "398c7c.b18a35f794625922";
        let manifest = ["token", "create", known, "--ttl", "0", "--dry-run"];
        let manifest = user.home.run(&[&manifest[..], &["-o", "yaml"]].concat());
        create(version, &manifest.exits(Exit::Done).stdout);
        user.run(&["token", "delete", "398c7c", token])
            .exits(Exit::Done);
        user.run(&["token", "list"])
            .exits(Exit::Done)
            .never_prints(id);
    }
}

/// What the API server says to somebody with this bearer who asks for what they may not see.
fn who_is(version: &str, bearer: &str) -> String {
    let output = Command::new("curl")
        .arg("-s")
        .arg("--cacert")
        .arg(kubernetes(version).join("pki/ca.crt"))
        .args(["-H", &format!("Authorization: Bearer {bearer}")])
        .arg(format!("{}/api/v1/nodes", server(version)))
        .output();
    text(&output.unwrap())
}

/// Chapter 7, on both versions: the file has the seed's names, works, and is nobody else's to read.
#[test]
#[ignore = "needs the lab: make test"]
fn the_bootstrap_kubeconfig_works() {
    for version in [OLD, NEW] {
        let user = User::of(version);
        let made = user.run(&["token", "create", "--ttl", "10m"]);
        let token = made.exits(Exit::Done).stdout.trim();
        let path = user.home.file("bootstrap-kubelet.conf");
        let write = [
            "kubeconfig",
            "bootstrap",
            "--token",
            token,
            "--write",
            &path,
        ];
        user.run(&write).exits(Exit::Done);
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let before = fs::read_to_string(&path).unwrap();
        let again = user.run(&write);
        assert_ne!(
            again.code,
            Some(Exit::Done as i32),
            "a file that exists is not overwritten"
        );
        assert_eq!(fs::read_to_string(&path).unwrap(), before);
        let run = |args: &[&str]| text(&kubectl_as(&path, args));
        assert_eq!(
            run(&["config", "current-context"]).trim(),
            "kubelet-bootstrap@kubernetes"
        );
        let names = "jsonpath={.clusters[0].name} {.users[0].name}";
        assert_eq!(
            run(&["config", "view", "-o", names]).trim(),
            "kubernetes kubelet-bootstrap"
        );
        eventually(Duration::from_secs(20), "the token to be known", || {
            run(&["get", "--raw", "/api/v1/nodes"]).contains("system:bootstrap:")
        });
        user.run(&["token", "delete", token]).exits(Exit::Done);
    }
}

/// Chapter 8, there and back, on both versions; what somebody else made stays.
#[test]
#[ignore = "needs the lab: make test"]
fn access_is_checked_granted_and_revoked() {
    let _grants = grants();
    // A group of this test's own: the wide one would let other tests in.
    let group = ["--group", "system:bootstrappers:access-test"];
    let grant = ["access", "grant", "--no-auto-approve"];
    for version in [OLD, NEW] {
        let user = User::of(version);
        // The API server's own answer, not through nodegraft.
        let review = user.home.file("review.json");
        fs::write(
            &review,
            r#"{"apiVersion":"authorization.k8s.io/v1","kind":"SubjectAccessReview","spec":{"user":"system:bootstrap:abcdef","groups":["system:bootstrappers:access-test"],
               "resourceAttributes":{"verb":"create","group":"certificates.k8s.io","resource":"certificatesigningrequests"}}}"#,
        )
        .unwrap();
        let reviews = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
        let may = || {
            kubectl(version, &["create", "--raw", reviews, "-f", &review])
                .contains("\"allowed\":true")
        };
        let check = [&["access", "check"], &group[..]].concat();
        user.run(&check)
            .exits(Exit::Unfit)
            .prints_all(&["no   tokens may ask", "nodegraft access grant"]);
        assert!(!may());
        user.run(&[&grant[..], &group].concat()).exits(Exit::Done);
        eventually(Duration::from_secs(20), "the binding to take effect", may);
        user.run(&check)
            .exits(Exit::Done)
            .prints("yes  tokens may ask for certificates  (by kubelet-bootstrap)");
        // A binding of another group is not replaced.
        let other = ["--group", "system:bootstrappers:other"];
        let another = user.run(&[&grant[..], &other].concat());
        assert_ne!(another.code, Some(Exit::Done as i32), "{another}");
        user.run(&["access", "revoke"]).exits(Exit::Done);
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
        user.run(&["access", "revoke"])
            .exits(Exit::Done)
            .prints("kubelet-bootstrap: none of ours");
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
        let account = "/api/v1/namespaces/default/serviceaccounts/default";
        eventually(
            Duration::from_secs(60),
            "the default service account",
            || kubernetes::exists(version, account),
        );
        create(version, &manifest);
        for name in ["free", "kept", "daemon"] {
            let status =
                r#"{"status":{"phase":"Running","conditions":[{"type":"Ready","status":"True"}]}}"#;
            patch_status(version, name, status);
        }
        let keep = format!("/apis/{policy}/namespaces/default/poddisruptionbudgets/keep");
        eventually(Duration::from_secs(60), "the budget to be counted", || {
            kubernetes::get(version, &keep)["status"]["currentHealthy"] == 1
        });
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .unwrap();
        let drain = |limit| {
            runtime.block_on(async {
                let cluster = Cluster::from_text(
                    &fs::read_to_string(admin(version)).unwrap(),
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
        let cordoned =
            || kubernetes::get(version, "/api/v1/nodes/drained")["spec"]["unschedulable"] == true;
        assert!(
            !cordoned(),
            "a drain that was given up left the Node cordoned"
        );
        let exists = |name: &str| {
            kubernetes::exists(version, &format!("/api/v1/namespaces/default/pods/{name}"))
        };
        assert!(
            exists("kept") && exists("daemon"),
            "a pod that must stay is gone"
        );
        kubectl(version, &["delete", "--raw", &keep]);
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
    let url = format!(
        "{}/api/v1/namespaces/default/pods/{pod}/status",
        server(version)
    );
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
        use std::process::Stdio;
        let create = world.command(&[]);
        let line = format!(
            "{} create --uri '{}' --pool {POOL} --bridge br0 --template {template}",
            create.get_program().display(),
            uri()
        );
        let mut child = Command::new("script")
            .args(["-qfec", &line, "/dev/null"])
            .envs(
                create
                    .get_envs()
                    .filter_map(|(key, value)| Some((key, value?))),
            )
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

/// Chapter 2, `create_vm.sh`: prompt by prompt. A wrong answer is asked for again.
#[test]
#[ignore = "needs the lab: make test"]
fn create_asks_what_the_flags_leave_open() {
    let world = World::tiny("default").node("192.168.3.153", 153);
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
    assert!(runs("192.168.3.153"));
    assert_eq!(
        world.guest("192.168.3.153", "hostname").trim(),
        "node-192-168-3-153"
    );
    // The spec it kept is one that `down` takes.
    let kept = world.file("state/default/192.168.3.153/spec.yaml");
    world.run(&["down", "-f", &kept]).exits(Exit::Done);
    world.down();
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
    let volume = ["vol-create-as", POOL, template, "3G", "--format", "qcow2"];
    virsh(&[&volume[..], &base].concat());
    let world = World::tiny("declined").node("192.168.3.154", 154);
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
    assert!(!has_domain("192.168.3.154"));
    assert!(
        volumes(POOL)
            .iter()
            .all(|name| !name.starts_with("nodegraft.default.192.168.3.154"))
    );
    virsh(&["vol-delete", "--pool", POOL, template]);
}
