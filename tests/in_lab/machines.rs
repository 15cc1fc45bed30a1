//! `join HOST`: machines that are there already, with a kubelet on them; and what is said of each trouble on the way,
//! every one of them real.

use std::fs;
use std::time::Duration;

use super::{
    GRANTS, Limited, NEW, OLD, Ran, World, eventually, kubectl_output, kubernetes, text, virsh,
};

/// A machine with a kubelet on it, and a user who can log in to it as to any other.
struct Machine<'a> {
    world: &'a World,
    ip: &'a str,
}

impl<'w> Machine<'w> {
    fn new(world: &'w World, ip: &'w str) -> Self {
        let ssh = world.dir.path().join(".ssh");
        if !ssh.exists() {
            fs::create_dir(&ssh).unwrap();
            fs::copy(
                world
                    .dir
                    .path()
                    .join("state")
                    .join(&world.name)
                    .join("id_ed25519"),
                ssh.join("id_ed25519"),
            )
            .unwrap();
        }
        let xml = virsh(&["dumpxml", ip]);
        let key = xml
            .split("host_key='")
            .nth(1)
            .or(xml.split("host_key=\"").nth(1))
            .unwrap()
            .split(['\'', '"'])
            .next()
            .unwrap();
        let known = fs::read_to_string(ssh.join("known_hosts")).unwrap_or_default();
        fs::write(ssh.join("known_hosts"), format!("{known}{ip} {key}\n")).unwrap();
        Self { world, ip }
    }

    fn args<'a>(&'a self, admin: &'a str, more: &[&'a str]) -> Vec<&'a str> {
        [&["join", self.ip, "--kubeconfig", admin], more].concat()
    }

    fn join(&self, more: &[&str]) -> Ran {
        let admin = kubernetes(self.world.version)
            .join("admin.conf")
            .display()
            .to_string();
        self.world.run(&self.args(&admin, more))
    }

    fn guest(&self, command: &str) -> String {
        self.world.guest(self.ip, command)
    }

    fn ready(&self) -> bool {
        self.world.ready(self.ip)
    }

    /// A join that is refused before anything is changed.
    fn is_refused(&self, more: &[&str], words: &[&str]) {
        self.ends(4, more, words);
    }

    /// A join that fails, and says why.
    fn fails(&self, more: &[&str], words: &[&str]) {
        self.ends(5, more, words);
    }

    fn ends(&self, code: i32, more: &[&str], words: &[&str]) {
        let ran = self.join(more);
        assert_eq!(ran.code, code, "{}", ran.stderr);
        for word in words {
            assert!(
                ran.stderr.contains(word),
                "`{word}` is not in:\n{}",
                ran.stderr
            );
        }
        let tokens = self.world.kubectl(&[
            "get",
            "--raw",
            "/api/v1/namespaces/kube-system/secrets?labelSelector=app.kubernetes.io/managed-by=nodegraft",
        ]);
        assert!(
            !tokens.contains(&format!("node {} joins", self.ip)),
            "the token is left"
        );
        let pending = |csr: &&serde_json::Value| {
            csr["status"]["conditions"].is_null()
                && csr["spec"]["groups"]
                    .to_string()
                    .contains("nodegraft:default")
        };
        let csrs: serde_json::Value = serde_json::from_str(&self.world.csrs()).unwrap();
        assert!(
            csrs["items"]
                .as_array()
                .unwrap()
                .iter()
                .find(pending)
                .is_none(),
            "the request is left"
        );
    }
}

/// The seed's own version. Chapter 9 whole: the kubelet starts without a binding, is forbidden to ask, `access grant`
/// makes the binding, and the join goes on by itself. Then what comes after: a second join, a Node that was deleted, a
/// serving certificate, a wrong cgroup driver.
pub fn a_machine_of_the_seeds_version(world: &World, ip: &str) {
    let machine = Machine::new(world, ip);
    let admin = kubernetes(OLD).join("admin.conf").display().to_string();
    {
        let _grants = GRANTS
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let join = machine.world.start(&machine.args(
            &admin,
            &["--reset", "--access", "none", "--label", "rack=a"],
        ));
        eventually(
            Duration::from_secs(120),
            "the kubelet to be refused",
            || {
                machine
                .guest("journalctl -u kubelet --no-pager | grep -c 'cannot create certificate signing request.*forbidden' || true")
                .trim()
                != "0"
            },
        );
        assert_eq!(
            machine
                .world
                .run(&["access", "grant", "--kubeconfig", &admin])
                .code,
            0
        );
        let joined = machine.world.end(join);
        assert_eq!(joined.code, 0, "{}", joined.stderr);
        assert!(machine.ready());
        let csrs = machine.world.csrs();
        assert!(
            csrs.contains("AutoApproved"),
            "the controllers were to approve it: {csrs}"
        );
        assert_eq!(
            machine
                .world
                .run(&["access", "revoke", "--kubeconfig", &admin])
                .code,
            0
        );
    }
    assert_eq!(
        machine
            .world
            .kubectl(&["get", "node", ip, "-o", "jsonpath={.metadata.labels.rack}"]),
        "a"
    );
    assert_eq!(
        machine
            .guest("ls /etc/kubernetes/bootstrap-kubelet.conf 2>/dev/null | wc -l")
            .trim(),
        "0"
    );
    let again = machine.join(&[]);
    assert!(
        again.code == 0 && again.stderr.contains("nothing to do"),
        "{}",
        again.stderr
    );

    // A machine that was a node before is left alone until one asks.
    machine.guest("systemctl stop kubelet");
    machine
        .world
        .kubectl(&["delete", "--raw", &format!("/api/v1/nodes/{ip}")]);
    let identity = "sha256sum /etc/kubernetes/kubelet.conf; readlink /var/lib/kubelet/pki/kubelet-client-current.pem";
    let before = machine.guest(identity);
    machine.is_refused(
        &[],
        &["was a node before", "--reset", "nothing was changed"],
    );
    assert_eq!(machine.guest(identity), before);

    // Nor is another cluster's control plane turned into a worker.
    machine.guest(
        "cd /etc/kubernetes/pki && touch ca.key && cp ca.crt /root/ && echo another > ca.crt",
    );
    machine.is_refused(
        &["--reset"],
        &[
            "is the control plane of another cluster",
            "nothing was changed",
        ],
    );
    assert_eq!(
        machine
            .guest("cd /etc/kubernetes/pki && cat ca.crt && rm ca.key && mv /root/ca.crt .")
            .trim(),
        "another"
    );

    // With --reset it joins anew; our own group is bound for as long as that takes; and the serving certificate is
    // for its own address alone.
    machine.guest("echo 'serverTLSBootstrap: true' >> /var/lib/kubelet/config.yaml");
    let anew = machine.join(&["--reset", "--approve-serving"]);
    assert_eq!(anew.code, 0, "{}", anew.stderr);
    assert!(machine.ready());
    assert_ne!(machine.guest(identity), before);
    let binding = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings/nodegraft:default:node-bootstrapper";
    assert!(
        !kubectl_output(OLD, &["get", "--raw", binding])
            .status
            .success(),
        "what was bound for the join is left"
    );
    let file = machine.world.dir.path().join("serving.pem");
    fs::write(
        &file,
        machine.guest("cat /var/lib/kubelet/pki/kubelet-server-current.pem"),
    )
    .unwrap();
    let shown = std::process::Command::new("openssl")
        .args([
            "x509",
            "-noout",
            "-ext",
            "subjectAltName",
            "-in",
            file.to_str().unwrap(),
        ])
        .output();
    let shown = text(&shown.unwrap());
    assert!(
        shown.contains(&format!("IP Address:{ip}")) && !shown.contains("IP Address:192.168.3.102"),
        "{shown}"
    );

    machine.guest("sed -i 's/--cgroup-driver=systemd/--cgroup-driver=cgroupfs/' /etc/systemd/system/kubelet.service.d/10-nodegraft.conf");
    machine.fails(
        &["--reset", "--timeout", "3m"],
        &[
            "its cgroup driver is not the container runtime's",
            "native.cgroupdriver=systemd",
        ],
    );
}

/// Today's version: one trouble after the other on one machine, which joins in the end.
pub fn each_trouble_is_told_by_its_name(world: &World, ip: &str) {
    let machine = Machine::new(world, ip);
    let long = ["--reset", "--timeout", "4m"];

    // Told as soon as the kubelet has ended three times, or shows that waiting will not help, long before the deadline.
    machine.guest("fallocate -l 64M /swap && chmod 600 /swap && mkswap -q /swap && swapon /swap");
    machine.fails(
        &long,
        &[
            "did not join and cannot as it is",
            "swap is on",
            "swapoff -a",
        ],
    );
    machine.guest("swapoff -a; mv /var/lib/kubelet/config.yaml /root/");
    machine.fails(&long, &["/var/lib/kubelet/config.yaml is missing"]);
    machine.guest("mv /root/config.yaml /var/lib/kubelet/; systemctl stop containerd");
    machine.fails(
        &long,
        &[
            "the container runtime is down",
            "containerd does not run",
            "systemctl status containerd",
        ],
    );
    machine.guest("systemctl start containerd; systemctl stop systemd-timesyncd; date -s @$(($(date +%s) - 40000000))");
    machine.fails(
        &long,
        &[
            "the clock of 192.168.3.110 is",
            "s behind the API server's",
            "timedatectl",
        ],
    );
    machine.guest(&format!("date -s @{}", seconds_now()));

    // Between the guest and the cluster.
    machine.fails(
        &[&long[..], &["--server", "https://192.168.3.102:6443"]].concat(),
        &[
            "cannot as it is",
            "the CA it was given did not sign it",
            "cluster.server",
        ],
    );
    machine.fails(
        &["--reset", "--server", "https://192.168.3.101:6444"],
        &["cannot reach the API server https://192.168.3.101:6444"],
    );

    // In the cluster: nobody approves; somebody denies.
    let limited = Limited::new(
        "joiner",
        "- {apiGroups: [''], resources: [secrets, nodes], verbs: ['*']}\n\
         - {apiGroups: [certificates.k8s.io], resources: [certificatesigningrequests], verbs: ['*']}\n\
         - {apiGroups: [rbac.authorization.k8s.io], resources: [clusterrolebindings], verbs: ['*']}\n\
         - {apiGroups: [rbac.authorization.k8s.io], resources: [clusterroles], verbs: [bind]}\n\
         - {apiGroups: [coordination.k8s.io], resources: [leases], verbs: ['*']}\n\
         - {apiGroups: [authorization.k8s.io], resources: ['*'], verbs: [create]}\n",
    );
    let admin = limited.kubeconfig();
    let pending = machine
        .world
        .run(&machine.args(&admin, &["--reset", "--timeout", "45s"]));
    assert_eq!(pending.code, 5);
    for words in [
        "waiting for somebody to approve",
        "nothing approves it",
        "nodeclient",
        "nodegraft access grant",
    ] {
        assert!(
            pending.stderr.contains(words),
            "`{words}` is not in:\n{}",
            pending.stderr
        );
    }
    let denied = machine
        .world
        .start(&machine.args(&admin, &["--reset", "--timeout", "2m"]));
    eventually(Duration::from_secs(100), "the request to be denied", || {
        let csrs: serde_json::Value = serde_json::from_str(&machine.world.csrs()).unwrap();
        let ours = |csr: &&serde_json::Value| {
            csr["status"]["conditions"].is_null()
                && csr["spec"]["groups"]
                    .to_string()
                    .contains("system:bootstrappers:nodegraft:default")
        };
        let Some(name) = csrs["items"]
            .as_array()
            .unwrap()
            .iter()
            .find(ours)
            .and_then(|csr| csr["metadata"]["name"].as_str())
        else {
            return false;
        };
        machine.world.kubectl(&["certificate", "deny", name]);
        true
    });
    let denied = machine.world.end(denied);
    assert_eq!(denied.code, 5);
    assert!(
        denied.stderr.contains("was denied") && denied.stderr.contains("a policy, denies"),
        "{}",
        denied.stderr
    );

    // The token ends before the kubelet asks.
    machine.guest(
        "printf '[Service]\\nExecStartPre=/bin/sleep 8\\n' > /etc/systemd/system/kubelet.service.d/90-late.conf; systemctl daemon-reload",
    );
    let admin = kubernetes(NEW).join("admin.conf").display().to_string();
    let expired = machine
        .world
        .start(&machine.args(&admin, &["--reset", "--timeout", "30s"]));
    eventually(Duration::from_secs(60), "the token", || {
        let selector = "jsonpath={range .items[*]}{.metadata.name} {.data.description}{'\\n'}{end}";
        let tokens = machine.world.kubectl(&[
            "get",
            "secret",
            "-n",
            "kube-system",
            "-l",
            "app.kubernetes.io/managed-by=nodegraft",
            "-o",
            selector,
        ]);
        use base64::Engine as _;
        let wanted =
            base64::engine::general_purpose::STANDARD.encode(format!("nodegraft: node {ip} joins"));
        let Some(name) = tokens
            .lines()
            .find(|line| line.ends_with(&wanted))
            .and_then(|line| line.split(' ').next())
        else {
            return false;
        };
        let past = r#"{"stringData":{"expiration":"2020-01-01T00:00:00Z"}}"#;
        machine.world.kubectl(&[
            "patch",
            "secret",
            "-n",
            "kube-system",
            name,
            "--type",
            "merge",
            "-p",
            past,
        ]);
        true
    });
    let expired = machine.world.end(expired);
    assert_eq!(expired.code, 5);
    assert!(expired.stderr.contains("expired"), "{}", expired.stderr);
    machine.guest("rm /etc/systemd/system/kubelet.service.d/90-late.conf; systemctl daemon-reload");

    // The name is another machine's.
    machine.world.kubectl(&[
        "create",
        "-f",
        node(&machine, "somebody-else").to_str().unwrap(),
    ]);
    machine.is_refused(
        &["--reset", "--name", "somebody-else"],
        &[
            "already has a Node somebody-else, of another machine",
            "kubectl delete node somebody-else",
        ],
    );
    machine
        .world
        .kubectl(&["delete", "--raw", "/api/v1/nodes/somebody-else"]);

    // It joins, and lacks only its network.
    machine.guest("mv /etc/cni/net.d /root/; systemctl restart containerd");
    machine.fails(
        &["--reset", "--timeout", "60s"],
        &["lacks only its network plugin", "cni_subnet"],
    );
    machine.guest("mv /root/net.d /etc/cni/; systemctl restart containerd");
    let joined = machine.join(&[]);
    assert_eq!(joined.code, 0, "{}", joined.stderr);
    assert!(machine.ready());
}

fn node(machine: &Machine, name: &str) -> std::path::PathBuf {
    let file = machine.world.dir.path().join("node.yaml");
    fs::write(
        &file,
        format!("apiVersion: v1\nkind: Node\nmetadata: {{name: {name}}}\n"),
    )
    .unwrap();
    file
}

/// Seconds since 1970 by this machine's clock, which is the API server's.
fn seconds_now() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_secs()
}

/// What stands in the way of a join before anything is changed: no kubelet, no login.
#[test]
#[ignore = "needs the lab: make test"]
fn machines_that_cannot_join() {
    let world = World::new(
        "nojoin",
        NEW,
        &["{name: nojoin, address: 192.168.3.163/24}"],
        |spec| spec,
    );
    let admin = kubernetes(NEW).join("admin.conf").display().to_string();
    let silent = world.run(&["join", "192.168.3.163", "--kubeconfig", &admin]);
    assert_eq!(silent.code, 4);
    assert!(
        silent.stderr.contains("logging in to 192.168.3.163")
            && silent.stderr.contains("without a password"),
        "{}",
        silent.stderr
    );
    // The lab's control plane has a login and no kubelet.
    let ssh = world.dir.path().join(".ssh");
    fs::create_dir(&ssh).unwrap();
    for file in ["id_ed25519", "known_hosts"] {
        fs::copy(super::state().join("ssh/client").join(file), ssh.join(file)).unwrap();
    }
    let bare = world.run(&["join", "root@192.168.3.101", "--kubeconfig", &admin]);
    assert_eq!(bare.code, 4, "{}", bare.stderr);
    fs::write(ssh.join("known_hosts"), "").unwrap();
    let unknown = world.run(&["join", "root@192.168.3.101", "--kubeconfig", &admin]);
    assert_eq!(unknown.code, 4);
    assert!(
        unknown.stderr.contains("none is recorded"),
        "{}",
        unknown.stderr
    );
}
