//! `join HOST`: machines that are there already, with a kubelet on them; and what is said of each trouble on the way,
//! every one of them real.

use std::fs;
use std::time::Duration;

use crate::fixture::{Exit, Ran, Running};
use crate::in_lab::kubernetes::{
    Limited, admin, create, exists, grants, manifest, pending, requests, tokens,
};
use crate::in_lab::libvirt::host_key;
use crate::in_lab::{NEW, OLD, World, eventually};

/// What `join` binds without a spec.
const GROUP: &str = "system:bootstrappers:nodegraft:default";

/// A machine with a kubelet on it, and a user who can log in to it as to any other.
struct Machine<'w> {
    world: &'w World,
    ip: &'w str,
}

impl<'w> Machine<'w> {
    fn new(world: &'w World, ip: &'w str) -> Self {
        let ssh = world.path(".ssh");
        if !ssh.exists() {
            fs::create_dir(&ssh).unwrap();
            let key = world.state(&world.name).join("id_ed25519");
            fs::copy(key, ssh.join("id_ed25519")).unwrap();
        }
        let known = fs::read_to_string(ssh.join("known_hosts")).unwrap_or_default();
        let ours = format!("{ip} {}\n", host_key(ip));
        fs::write(ssh.join("known_hosts"), known + &ours).unwrap();
        Self { world, ip }
    }

    /// Begins a join with this kubeconfig.
    fn begins(&self, kubeconfig: &str, more: &[&str]) -> Running {
        let join = ["join", self.ip, "--kubeconfig", kubeconfig];
        self.world.start(&[&join, more].concat())
    }

    fn joins(&self, more: &[&str]) -> Ran {
        let admin = admin(self.world.version);
        self.world.end(self.begins(&admin, more))
    }

    fn guest(&self, command: &str) -> String {
        self.world.guest(self.ip, command)
    }

    fn ready(&self) -> bool {
        self.world.ready(self.ip)
    }

    /// A join that is refused before anything is changed.
    #[track_caller]
    fn is_refused(&self, more: &[&str], words: &[&str]) {
        self.ends(Exit::Unfit, more, words);
    }

    /// A join that fails, and says why.
    #[track_caller]
    fn fails(&self, more: &[&str], words: &[&str]) {
        self.ends(Exit::NodesFailed, more, words);
    }

    #[track_caller]
    fn ends(&self, exit: Exit, more: &[&str], words: &[&str]) {
        self.joins(more).exits(exit).says_all(words);
        let ours = format!("node {} joins", self.ip);
        assert_eq!(self.token(&ours), None, "the token is left");
        let left = pending(self.world.version, GROUP);
        assert!(left.is_empty(), "the request is left: {left:?}");
    }

    /// The name of the token with this description.
    fn token(&self, description: &str) -> Option<String> {
        use base64::Engine as _;
        let wanted =
            base64::engine::general_purpose::STANDARD.encode(format!("nodegraft: {description}"));
        tokens(self.world.version)
            .iter()
            .find(|token| token["data"]["description"] == *wanted)
            .map(|token| token["metadata"]["name"].as_str().unwrap().to_owned())
    }
}

/// The seed's own version. Chapter 9 whole: the kubelet starts without a binding, is forbidden to ask, `access grant`
/// makes the binding, and the join goes on by itself. Then what comes after: a second join, a Node that was deleted, a
/// serving certificate, a wrong cgroup driver.
pub fn a_machine_of_the_seeds_version(world: &World, ip: &str) {
    let machine = Machine::new(world, ip);
    let admin = admin(OLD);
    {
        let _grants = grants();
        let join = machine.begins(
            &admin,
            &["--reset", "--access", "none", "--label", "rack=a"],
        );
        let refused = "journalctl -u kubelet --no-pager | grep -c 'cannot create certificate signing request.*forbidden' || true";
        eventually(
            Duration::from_secs(120),
            "the kubelet to be refused",
            || machine.guest(refused).trim() != "0",
        );
        let grant = ["access", "grant", "--kubeconfig", &admin];
        world.run(&grant).exits(Exit::Done);
        world.end(join).exits(Exit::Done);
        assert!(machine.ready());
        let all = serde_json::Value::from(requests(OLD)).to_string();
        assert!(
            all.contains("AutoApproved"),
            "the controllers were to approve it: {all}"
        );
        let revoke = ["access", "revoke", "--kubeconfig", &admin];
        world.run(&revoke).exits(Exit::Done);
    }
    assert_eq!(world.of_node(ip, "{.metadata.labels.rack}"), "a");
    assert!(!world.guest_has(ip, "/etc/kubernetes/bootstrap-kubelet.conf"));
    machine.joins(&[]).exits(Exit::Done).says("nothing to do");

    // A machine that was a node before is left alone until one asks.
    machine.guest("systemctl stop kubelet");
    world.kubectl(&["delete", "--raw", &format!("/api/v1/nodes/{ip}")]);
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
    let kept = machine.guest("cd /etc/kubernetes/pki && cat ca.crt && rm ca.key && mv /root/ca.crt . && echo 'serverTLSBootstrap: true' >> /var/lib/kubelet/config.yaml");
    assert_eq!(kept.trim(), "another");

    // With --reset it joins anew; our own group is bound for as long as that takes; and the serving certificate is
    // for its own address alone.
    machine
        .joins(&["--reset", "--approve-serving"])
        .exits(Exit::Done);
    assert!(machine.ready());
    assert_ne!(machine.guest(identity), before);
    let binding = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings/nodegraft:default:node-bootstrapper";
    assert!(!exists(OLD, binding), "what was bound for the join is left");
    let shown = super::serving_certificate(world, ip);
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
    of_the_machine(&machine);
    of_the_way_to_the_cluster(&machine);
    of_the_request(&machine);
    of_the_token(&machine);

    // The name is another machine's.
    create(NEW, &manifest("somebody-else").to_string());
    machine.is_refused(
        &["--reset", "--name", "somebody-else"],
        &[
            "already has a Node somebody-else, of another machine",
            "kubectl delete node somebody-else",
        ],
    );
    world.kubectl(&["delete", "--raw", "/api/v1/nodes/somebody-else"]);

    // It joins, and lacks only its network.
    machine.guest("mv /etc/cni/net.d /root/; systemctl restart containerd");
    machine.fails(
        &["--reset", "--timeout", "40s"],
        &["lacks only its network plugin", "cni_subnet"],
    );
    machine.guest("mv /root/net.d /etc/cni/; systemctl restart containerd");
    machine.joins(&[]).exits(Exit::Done);
    assert!(machine.ready());
}

/// Told as soon as the kubelet has ended three times, or shows that waiting will not help, long before the deadline.
fn of_the_machine(machine: &Machine) {
    let long = ["--reset", "--timeout", "4m"];
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
            &format!("the clock of {} is", machine.ip),
            "s behind the API server's",
            "timedatectl",
        ],
    );
    machine.guest(&format!("date -s @{}", seconds_now()));
}

fn of_the_way_to_the_cluster(machine: &Machine) {
    machine.fails(
        &[
            "--reset",
            "--timeout",
            "4m",
            "--server",
            "https://192.168.3.102:6443",
        ],
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
}

/// In the cluster: nobody approves; somebody denies.
fn of_the_request(machine: &Machine) {
    let limited = Limited::new(
        "joiner",
        "- {apiGroups: [''], resources: [secrets, nodes], verbs: ['*']}\n\
         - {apiGroups: [certificates.k8s.io], resources: [certificatesigningrequests], verbs: ['*']}\n\
         - {apiGroups: [rbac.authorization.k8s.io], resources: [clusterrolebindings], verbs: ['*']}\n\
         - {apiGroups: [rbac.authorization.k8s.io], resources: [clusterroles], verbs: [bind]}\n\
         - {apiGroups: [coordination.k8s.io], resources: [leases], verbs: ['*']}\n\
         - {apiGroups: [authorization.k8s.io], resources: ['*'], verbs: [create]}\n",
    );
    let world = machine.world;
    let pending_join = machine.begins(&limited.kubeconfig(), &["--reset", "--timeout", "40s"]);
    world.end(pending_join).exits(Exit::NodesFailed).says_all(&[
        "waiting for somebody to approve",
        "nothing approves it",
        "nodeclient",
        "nodegraft access grant",
    ]);
    let denied = machine.begins(&limited.kubeconfig(), &["--reset", "--timeout", "2m"]);
    eventually(Duration::from_secs(100), "the request to be denied", || {
        let asked = pending(NEW, GROUP);
        if let Some(name) = asked.first().map(|csr| csr["metadata"]["name"].as_str()) {
            world.kubectl(&["certificate", "deny", name.unwrap()]);
        }
        !asked.is_empty()
    });
    world
        .end(denied)
        .exits(Exit::NodesFailed)
        .says_all(&["was denied", "a policy, denies"]);
}

/// It ends before the kubelet asks.
fn of_the_token(machine: &Machine) {
    let world = machine.world;
    machine.guest(
        "printf '[Service]\\nExecStartPre=/bin/sleep 8\\n' > /etc/systemd/system/kubelet.service.d/90-late.conf; systemctl daemon-reload",
    );
    let expired = machine.begins(&admin(NEW), &["--reset", "--timeout", "30s"]);
    let mut token = None;
    eventually(Duration::from_secs(60), "the token", || {
        token = machine.token(&format!("node {} joins", machine.ip));
        token.is_some()
    });
    let past = r#"{"stringData":{"expiration":"2020-01-01T00:00:00Z"}}"#;
    let patch = ["patch", "secret", "-n", "kube-system", &token.unwrap()];
    world.kubectl(&[&patch[..], &["--type", "merge", "-p", past]].concat());
    world.end(expired).exits(Exit::NodesFailed).says("expired");
    machine.guest("rm /etc/systemd/system/kubelet.service.d/90-late.conf; systemctl daemon-reload");
}

/// Seconds since 1970 by this machine's clock, which is the API server's.
fn seconds_now() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.unwrap().as_secs()
}
