//! The Join stage, on a real sshd whose guest is a directory, against the API server of these tests.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use nodegraft::core::error::one_line;
use nodegraft::core::journal::{Journal, Thing};
use nodegraft::core::plan::{ClusterPlan, DEADLINES, Deadlines, Member};
use nodegraft::core::spec::Access;
use nodegraft::core::stage_name::StageName;
use nodegraft::core::template::Templates;
use nodegraft::pipeline::stage::{Check, Events, Reporter, Stage};
use nodegraft::stages::candidate::Machine;
use nodegraft::stages::join_stages;
use serde_json::{Value, json};

use crate::api_server::ApiServer;
use crate::ssh::Server;

const N1: &str = "/api/v1/nodes/n1";
const LEASE: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/n1";
const SECRETS: &str = "/api/v1/namespaces/kube-system/secrets";
const IDENTITY: &str = "etc/kubernetes/kubelet.conf";
const BOOTSTRAP: &str = "etc/kubernetes/bootstrap-kubelet.conf";

/// Every command sees the guest's directory in place of the machine's own files, and its programs.
const GUEST: &str = r#"#!/bin/bash
here=$(dirname "$0")
export PATH=$here/bin:$PATH
exec bash -c "$(sed "s,/etc/kubernetes,$here&,g; s,/var/lib/kubelet,$here&,g; s,/proc/sys/kernel/random,$here&,g" <<<"$SSH_ORIGINAL_COMMAND")"
"#;

/// A machine with the id `abc`, which was started with the boot `here`.
struct World {
    api: ApiServer,
    server: Server,
    machine: tokio::sync::Mutex<Machine>,
    journal: Journal,
}

fn program(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

impl World {
    async fn new(reset: bool) -> Self {
        let api = ApiServer::new();
        let server = Server::with(|dir| {
            program(&dir.join("guest"), GUEST);
            program(
                &dir.join("bin/systemctl"),
                "#!/bin/sh\necho \"$@\" >> \"$(dirname \"$0\")/systemctl.log\"\n",
            );
            program(&dir.join("bin/sudo"), "#!/bin/sh\nshift\nexec \"$@\"\n");
            vec![format!("ForceCommand={}", dir.join("guest").display())]
        });
        let member = Member {
            name: "n1".into(),
            hostname: "n1".into(),
            ip: "127.0.0.1".parse().unwrap(),
            labels: [].into(),
            taints: Vec::new(),
            kubelet: None,
            serving: false,
            shell: "ssh n1".into(),
            deadlines: Deadlines {
                join: Duration::from_secs(1),
                ..DEADLINES
            },
        };
        let terms = ClusterPlan {
            name: "homelab".into(),
            source: None,
            server: None,
            access: Access::None,
            serving: false,
        };
        let at = (server.target.clone(), server.session().await);
        let machine = Machine::new(
            member,
            "abc".into(),
            at,
            api.connect().await,
            terms,
            Templates::built_in(),
            reset,
        );
        let world = Self {
            api,
            server,
            machine: machine.into(),
            journal: Journal::default(),
        };
        world.write("proc/sys/kernel/random/boot_id", "here\n");
        world
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.server.dir.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn has(&self, path: &str) -> bool {
        self.server.dir.path().join(path).exists()
    }

    fn identity(&self) {
        self.write(IDENTITY, "client-certificate-data: x\n");
    }

    /// The Node of a kubelet on a machine with our id, with that boot.
    fn node(&self, boot: &str) {
        let owner = json!({"nodegraft.io/cluster": "homelab", "nodegraft.io/node": "n1", "nodegraft.io/instance": "abc"});
        let info = json!({"machineID": "abc", "bootID": boot, "architecture": "", "containerRuntimeVersion": "", "kernelVersion": "",
            "kubeProxyVersion": "", "kubeletVersion": "", "operatingSystem": "", "osImage": "", "systemUUID": ""});
        self.api.put(
            N1,
            json!({"metadata": {"annotations": owner}, "status": {"nodeInfo": info}}),
        );
    }

    fn token(&self, id: &str, instance: &str, expires: &str) {
        use base64::Engine as _;
        let coded = base64::engine::general_purpose::STANDARD.encode(expires);
        let owner = json!({"nodegraft.io/cluster": "homelab", "nodegraft.io/node": "n1", "nodegraft.io/instance": instance});
        let labels = json!({"app.kubernetes.io/managed-by": "nodegraft"});
        let metadata = json!({"labels": labels, "annotations": owner, "creationTimestamp": "2020-01-01T00:00:00Z"});
        let token = json!({"type": "bootstrap.kubernetes.io/token", "metadata": metadata, "data": {"expiration": coded}});
        self.api
            .put(&format!("{SECRETS}/bootstrap-token-{id}"), token);
    }

    fn tokens(&self) -> Vec<String> {
        ["aaaaaa", "bbbbbb"]
            .into_iter()
            .filter(|id| {
                self.api
                    .get(&format!("{SECRETS}/bootstrap-token-{id}"))
                    .is_some()
            })
            .map(str::to_owned)
            .collect()
    }

    fn stage() -> (Box<dyn Stage<Machine>>, Reporter) {
        let nobody = Events::new(tokio::sync::mpsc::unbounded_channel().0);
        (
            join_stages().remove(0),
            Reporter::new(nobody, None, StageName::Join),
        )
    }

    async fn check(&self) -> Check {
        let (stage, report) = Self::stage();
        let mut machine = self.machine.lock().await;
        stage.check(&mut *machine, &report).await.unwrap()
    }

    async fn apply(&self) -> Result<(), String> {
        let (stage, report) = Self::stage();
        stage
            .apply(&mut *self.machine.lock().await, &report, &self.journal)
            .await
            .map_err(|error| one_line(&error))
    }
}

/// A kubelet that renews the lease of n1, by a clock that begins there.
struct Kubelet {
    runs: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Kubelet {
    fn new(api: &Arc<World>, mut clock: jiff::Timestamp) -> Self {
        let runs = Arc::new(AtomicBool::new(true));
        let (world, until) = (Arc::clone(api), Arc::clone(&runs));
        let thread = std::thread::spawn(move || {
            while until.load(Ordering::Relaxed) {
                let renewed = clock.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string();
                world.api.put(
                    LEASE,
                    json!({"metadata": {}, "spec": {"renewTime": renewed}}),
                );
                std::thread::sleep(Duration::from_millis(300));
                clock += Duration::from_millis(300);
            }
        });
        Self {
            runs,
            thread: Some(thread),
        }
    }
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        self.runs.store(false, Ordering::Relaxed);
        // It holds the world, whose sshd must end with the test.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Two copies of one machine have the same machine-id and the same name, and one is in the cluster.
#[tokio::test]
async fn a_copy_of_a_machine_that_lives_does_not_take_its_node() {
    // Known before anything is touched, also where the copy has the other's identity and is to be cleared.
    for cleared in [false, true] {
        let world = Arc::new(World::new(cleared).await);
        if cleared {
            world.identity();
        }
        world.node("elsewhere");
        let _kubelet = Kubelet::new(&world, jiff::Timestamp::now());
        let Check::Conflict(error) = world.check().await else {
            panic!("it is no conflict, cleared: {cleared}")
        };
        assert!(
            error.to_string().contains("of another machine that lives"),
            "{error}"
        );
        assert!(error.help().unwrap().contains("systemd-machine-id-setup"));
        assert_eq!(
            (world.has("bin/systemctl.log"), world.has(IDENTITY)),
            (false, cleared)
        );
    }
    // Its clock is off: that its kubelet lives is seen only when ours was stopped.
    let world = Arc::new(World::new(false).await);
    world.node("elsewhere");
    let _kubelet = Kubelet::new(&world, "2020-01-01T00:00:00Z".parse().unwrap());
    assert!(matches!(world.check().await, Check::Needed(_)));
    let before = world.api.get(N1);
    let error = world.apply().await.unwrap_err();
    assert!(error.contains("both have the machine-id abc"), "{error}");
    assert_eq!(world.api.get(N1), before);
    assert!(world.api.seen(&format!("DELETE {N1}")).is_empty());
    // What an undo would remove.
    assert!(
        world
            .journal
            .backward()
            .iter()
            .all(|thing| matches!(thing, Thing::Token { .. })),
        "{:?}",
        world.journal
    );
    assert!(!world.has(BOOTSTRAP));
    assert_eq!(
        world.api.seen(&format!("DELETE {SECRETS}*")).len(),
        1,
        "its token is gone"
    );
}

#[tokio::test]
async fn the_node_of_the_machines_own_earlier_life_goes() {
    // It was started anew since, and its kubelet is dead; or it is the same boot.
    for (boot, lease) in [("earlier", None), ("here", Some(jiff::Timestamp::now()))] {
        let world = Arc::new(World::new(false).await);
        world.node(boot);
        if let Some(renewed) = lease {
            world.api.put(LEASE, json!({"metadata": {}, "spec": {"renewTime": renewed.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()}}));
        }
        assert!(matches!(world.check().await, Check::Needed(_)), "{boot}");
        // There is no kubelet to ask for a certificate.
        assert!(
            world
                .apply()
                .await
                .unwrap_err()
                .contains("did not join within 1 s"),
            "{boot}"
        );
        assert_eq!(world.api.get(N1), None, "{boot}");
        assert!(
            world
                .journal
                .backward()
                .contains(&Thing::Node { name: "n1".into() })
        );
        assert!(
            !world.has(BOOTSTRAP),
            "the token is not left on the machine"
        );
    }
}

/// A run that was killed after the kubelet got its identity left its token, on either side.
#[tokio::test]
async fn what_a_killed_run_left_of_its_token_is_found_and_removed() {
    let world = World::new(false).await;
    world.identity();
    world.node("here");
    let (ours, theirs) = (
        "# nodegraft: for one join\nkind: Config\n",
        "kind: Config\n",
    );
    let needed = |check: Check| matches!(check, Check::Needed(why) if why.contains("killed"));

    world.token("aaaaaa", "abc", "2099-01-01T00:00:00Z");
    world.token("bbbbbb", "def", "2099-01-01T00:00:00Z");
    assert!(needed(world.check().await));
    world.apply().await.unwrap();
    assert_eq!(world.tokens(), ["bbbbbb"], "another machine's stays");
    assert!(matches!(world.check().await, Check::Done(_)));

    world.write(BOOTSTRAP, ours);
    assert!(needed(world.check().await));
    world.apply().await.unwrap();
    assert!(!world.has(BOOTSTRAP));
    assert!(matches!(world.check().await, Check::Done(_)));

    world.write(BOOTSTRAP, theirs);
    assert!(matches!(world.check().await, Check::Done(_)));
    world.apply().await.unwrap();
    assert!(world.has(BOOTSTRAP), "somebody else wrote it");
    assert_eq!(world.api.get(N1).unwrap()["spec"], Value::Null);
}

#[tokio::test]
async fn only_a_token_that_is_alive_goes_first() {
    for (expires, ended) in [
        ("2099-01-01T00:00:00Z", "another machine is joining as n1"),
        ("2020-01-01T00:05:00Z", "did not join within 1 s"),
    ] {
        let world = World::new(false).await;
        world.token("bbbbbb", "def", expires);
        let error = world.apply().await.unwrap_err();
        assert!(error.contains(ended), "{expires}: {error}");
        assert_eq!(world.tokens(), ["bbbbbb"]);
    }
}
