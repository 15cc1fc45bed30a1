//! Specs: what a good one becomes, and how a bad one is refused.

use nodegraft::core::difference::{Machine, of_machine};
use nodegraft::core::error::Kind;
use nodegraft::core::mark::Mark;
use nodegraft::core::ownership::Owner;
use nodegraft::core::plan::Plan;
use nodegraft::core::spec::{Size, Spec};
use nodegraft::core::template::Templates;
use serde_json::json;

use crate::fixture::{Draft, rewritten};

pub const GOOD: &str = "\
version: 1
cluster:
  name: homelab
  kubeconfig: ~/.kube/config
host:
  uri: qemu:///system
  pool: kvmimage
  network: {bridge: br0}
defaults:
  template: debian13.qcow2
  profile: debian-containerd
  cpus: 2
  memory: 4GiB
  disk: 40GiB
  gateway: 192.168.3.1
  dns: [223.5.5.5]
  kubelet: {version: 1.35.4, package: kubelet}
nodes:
  - {name: 192.168.3.104, address: 192.168.3.104/24}
  - {name: worker-2, address: 192.168.3.105/24, memory: 8GiB, labels: {disk: ssd}}
";

fn good() -> Draft {
    Draft::parse(GOOD)
}

fn plan(text: &str) -> Plan {
    Plan::new(
        &Spec::parse(text, "cluster.yaml").unwrap(),
        Templates::built_in(),
        &[],
    )
    .unwrap()
}

#[test]
fn a_good_spec_becomes_a_plan() {
    let plan = plan(GOOD);
    let (first, second) = (&plan.nodes[0], &plan.nodes[1]);
    assert_eq!(
        (first.name.as_str(), first.hostname.as_str()),
        ("192.168.3.104", "node-192-168-3-104")
    );
    assert_eq!(
        (first.memory, second.memory, second.disk),
        (4 << 30, 8 << 30, 40 << 30)
    );
    assert_eq!(second.hostname, "worker-2");
    assert_eq!(second.labels["disk"], "ssd");
    assert_eq!(
        first
            .steps
            .iter()
            .map(|step| step.name.as_str())
            .collect::<Vec<_>>(),
        ["init", "runtime", "kubelet"]
    );
    assert_ne!(first.mac, second.mac);
    assert!(first.mac.starts_with("52:54:00:"));
}

/// libvirt rounds up to KiB, qemu aligns the memory of a VM that starts to MiB, and an image to 512 bytes.
#[test]
fn a_node_that_was_made_as_the_spec_says_does_not_differ_from_it() {
    for (size, whole) in [
        ("1GB", "954MiB"),
        ("1500MB", "1431MiB"),
        ("1.3G", "1332MiB"),
        ("15GB", "14306MiB"),
        ("2GiB", "2GiB"),
    ] {
        let draft = good()
            .set("defaults.memory", size)
            .set("defaults.disk", "15GB");
        let node = &plan(&draft.text()).nodes[0];
        assert_eq!(
            (
                Size(node.memory).to_string().as_str(),
                Size(node.disk).to_string().as_str()
            ),
            (whole, "14306MiB"),
            "{size}"
        );
        let mark = Mark {
            made_with: node.made_with(),
            ..Mark::new(
                Owner::new("homelab", &node.name).unwrap(),
                &node.address,
                Vec::new(),
            )
        };
        let kept = |bytes: u64, unit: u64| bytes.div_ceil(unit) * unit;
        let memory = kept(kept(node.memory, 1 << 10), 1 << 20);
        let mut machine = Machine {
            mark: &mark,
            cpus: node.cpus,
            memory,
            disk: Some(kept(kept(node.disk, 1 << 10), 512)),
        };
        assert_eq!(of_machine(node, &machine), [], "{size}");
        machine.memory += 1 << 20;
        assert_eq!(of_machine(node, &machine).len(), 1, "{size}");
    }
}

#[test]
fn the_same_spec_gives_the_same_plan() {
    let (one, two) = (plan(GOOD), plan(GOOD));
    for (a, b) in one.nodes.iter().zip(&two.nodes) {
        assert_eq!((a.made_with(), &a.mac), (b.made_with(), &b.mac));
        assert_eq!(
            a.steps.iter().map(|s| &s.digest).collect::<Vec<_>>(),
            b.steps.iter().map(|s| &s.digest).collect::<Vec<_>>()
        );
    }
}

#[test]
fn only_the_named_nodes_are_planned() {
    let spec = Spec::parse(GOOD, "cluster.yaml").unwrap();
    let plan = Plan::new(&spec, Templates::built_in(), &["worker-2".to_owned()]).unwrap();
    assert_eq!(plan.nodes.len(), 1);
    let error = Plan::new(&spec, Templates::built_in(), &["worker-3".to_owned()]).unwrap_err();
    assert!(error.help().unwrap().contains("worker-2"));
}

/// Replaces `from` by `to` in the good spec, and returns what the refusal says, all of it.
#[track_caller]
fn refusal(from: &str, to: &str) -> String {
    let text = rewritten(GOOD, from, to);
    let error = match Spec::parse(&text, "cluster.yaml") {
        Err(error) => error,
        Ok(spec) => Plan::new(&spec, Templates::built_in(), &[]).expect_err("it should be refused"),
    };
    assert_eq!(error.kind(), Kind::Refused, "{error}");
    let mut text = format!("{error}\n{}\n", error.causes().join("\n"));
    text.push_str(&error.detail().join("\n"));
    format!("{text}\n{}", error.help().unwrap_or_default())
}

#[test]
fn bad_specs_are_refused_with_the_place_and_the_remedy() {
    // What is changed, what it is changed to, and what the message must contain.
    let cases: &[(&str, &str, &[&str])] = &[
        (
            "cpus: 2",
            "cpu: 2",
            &[
                "cluster.yaml:12:3",
                "unknown key `cpu`",
                "did you mean `cpus`?",
            ],
        ),
        (
            "cpus: 2",
            "cpus: 2\n  cpus: 3",
            &[
                "cluster.yaml:13:3",
                "`cpus` is given twice",
                "keep one of them",
            ],
        ),
        ("cpus: 2", "cpus: two", &["not a whole number that fits"]),
        ("cpus: 2", "cpus: 5000", &["5000 is more than 4096"]),
        (
            "cpus: 2",
            "clone: overly",
            &[
                "`overly` is not one of overlay, full",
                "did you mean `overlay`?",
            ],
        ),
        (
            "name: homelab\n",
            "context: x\n",
            &["the key `name` is missing"],
        ),
        (
            "cpus: 2",
            "mtu: 4000000000",
            &["mtu 4000000000 is more than 65535"],
        ),
        (
            "disk: 40GiB",
            "disk: 3PiB",
            &["disk 3072TiB is more than 2048TiB", "ask for less"],
        ),
        (
            "disk: 40GiB",
            "disk: 99999999999999999999GiB",
            &["more than any disk or memory has"],
        ),
        (
            "name: homelab",
            "name: homelab\n  server: 192.168.3.101:6443",
            &[
                "cluster.yaml:4:11",
                "not an https URL",
                "https://192.168.3.101:6443",
            ],
        ),
        (
            "name: homelab",
            "name: homelab\n  server: https://localhost:6443",
            &["guests cannot reach it", "cluster.server"],
        ),
        (
            "defaults:",
            "ssh: {user: bad user}\ndefaults:",
            &["cluster.yaml:9:13", "`bad user` cannot be a login name"],
        ),
        (
            "defaults:",
            "ssh: {authorized_keys: [~/.ssh/id_ed25519.pub]}\ndefaults:",
            &["is not a public key", "the line in its .pub file"],
        ),
        (
            "name: worker-2",
            "name: lock",
            &["`lock` cannot name a node"],
        ),
        (
            "name: worker-2",
            "name: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa.aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
            &["cannot name a Kubernetes node", "63 at most"],
        ),
        (
            "labels: {disk: ssd}",
            "taints: ['gpu=true']",
            &["`gpu=true` is not a taint: it has no effect"],
        ),
        (
            "labels: {disk: ssd}",
            "taints: ['a=b:NoSchedul']",
            &["`NoSchedul` is not an effect"],
        ),
        (
            "labels: {disk: ssd}",
            "vars: {cluster_dns: 10.96.0.10}",
            &[
                "`vars.cluster_dns` is not a list of IP addresses",
                "10.96.0.10",
            ],
        ),
        (
            "labels: {disk: ssd}",
            "vars: {cni_subnet: garbage}",
            &["`vars.cni_subnet` is not a network", "10.244.0.0/24"],
        ),
        (
            "labels: {disk: ssd}",
            "vars: {pause_imag: x}",
            &["no variable `pause_imag`", "did you mean `pause_image`?"],
        ),
        (
            "profile: debian-containerd",
            "profile: debian-containrd",
            &[
                "no profile `debian-containrd`",
                "did you mean `debian-containerd`?",
            ],
        ),
        (
            "version: 1\n",
            "version: 2\n",
            &["cluster.yaml:1:10", "version 2", "version: 1"],
        ),
        (
            "name: worker-2",
            "name: 192.168.3.104",
            &["cluster.yaml:20:12", "given twice"],
        ),
        (
            "192.168.3.105/24",
            "192.168.3.104/24",
            &["cluster.yaml:20:31", "given to two nodes"],
        ),
        (
            "192.168.3.105/24",
            "192.168.4.105/24",
            &["outside the network of its gateway 192.168.3.1"],
        ),
        (
            "192.168.3.105/24",
            "192.168.3.105",
            &["no prefix length", "192.168.3.104/24"],
        ),
        (
            "192.168.3.105/24",
            "192.168.3.0/24",
            &["address of the network itself"],
        ),
        (
            "192.168.3.105/24",
            "192.168.3.255/24",
            &["broadcast address"],
        ),
        (
            "192.168.3.105/24",
            "192.168.3.1/24",
            &["gateway's own address"],
        ),
        ("memory: 4GiB", "memory: 4096", &["no unit", "4GiB"]),
        ("memory: 4GiB", "memory: 4MiB", &["less than 256MiB"]),
        (
            "name: worker-2",
            "name: Worker_2",
            &["cannot name a Kubernetes node"],
        ),
        (
            "  gateway: 192.168.3.1\n",
            "",
            &["has no gateway", "defaults"],
        ),
        (
            "  kubeconfig: ~/.kube/config\n",
            "",
            &["neither `kubeconfig` nor `control_plane`"],
        ),
        ("  template: debian13.qcow2\n", "", &["has no `template`"]),
        (
            "profile: debian-containerd",
            "profile: debian-podman",
            &["no profile `debian-podman`", "debian-docker"],
        ),
        (
            "package: kubelet}",
            "url: http://x/kubelet}",
            &["needs its sha256"],
        ),
        (
            "{version: 1.35.4, package: kubelet}",
            "{version: 1.35.4}",
            &["has no source"],
        ),
        (
            "version: 1.35.4",
            "version: latest",
            &["not a kubelet version"],
        ),
        (
            "profile: debian-containerd",
            "profile: debian-docker",
            &["dockershim", "containerd profile"],
        ),
        (
            "labels: {disk: ssd}",
            "vars: {pause: x}",
            &["no variable `pause`", "pause_image"],
        ),
        (
            "labels: {disk: ssd}",
            "deadlines: {boot: 90}",
            &["90", "10m"],
        ),
        (
            "{disk: ssd}",
            "{disk: 'solid state'}",
            &[
                "cluster.yaml:20:78",
                "solid state",
                "value of the label `disk`",
            ],
        ),
        (
            "{disk: ssd}",
            "{-disk: ssd}",
            &[
                "cluster.yaml:20:79",
                "`-disk` cannot be a label's key",
                "example.com/disk",
            ],
        ),
        (
            "labels: {disk: ssd}",
            "taints: [gpu]",
            &[
                "cluster.yaml:20:72",
                "`gpu` is not a taint",
                "it has no effect",
                "key=value:Effect",
            ],
        ),
        (
            "labels: {disk: ssd}",
            "taints: ['gpu=a b:NoSchedule']",
            &["cluster.yaml:20:72", "gpu=a b"],
        ),
        (
            "labels: {disk: ssd}",
            "taints: ['gpu:NoStart']",
            &[
                "cluster.yaml:20:72",
                "`NoStart` is not an effect",
                "PreferNoSchedule",
            ],
        ),
        (
            "labels: {disk: ssd}",
            "taints: ['a=1:NoExecute', 'a=2:NoExecute']",
            &["cluster.yaml:20:89", "given twice"],
        ),
        (
            "  cpus: 2\n",
            "  cpus: 2\n  labels: {a/b/c: x}\n",
            &["cluster.yaml:13:19", "`a/b/c` cannot be a label's key"],
        ),
    ];
    for (from, to, wanted) in cases {
        let said = refusal(from, to);
        for words in *wanted {
            assert!(
                said.contains(words),
                "`{from}` -> `{to}`: `{words}` is not in:\n{said}"
            );
        }
    }
}

#[test]
fn labels_and_taints_of_the_defaults_and_of_the_node() {
    let draft = good()
        .add("defaults.labels", json!({"tier": "gold", "disk": "hdd"}))
        .add("defaults.taints", json!(["gpu=true:NoSchedule"]))
        .add("nodes.1.taints", json!(["only:NoExecute"]));
    let plan = plan(&draft.text());
    let taints = |node: usize| {
        plan.nodes[node]
            .taints
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
    };
    assert_eq!(
        (
            plan.nodes[0].labels["tier"].as_str(),
            plan.nodes[0].labels["disk"].as_str()
        ),
        ("gold", "hdd")
    );
    assert_eq!(
        (
            plan.nodes[1].labels["tier"].as_str(),
            plan.nodes[1].labels["disk"].as_str()
        ),
        ("gold", "ssd")
    );
    assert_eq!(
        (taints(0), taints(1)),
        (
            vec!["gpu=true:NoSchedule".to_owned()],
            vec!["only:NoExecute".to_owned()]
        )
    );
    assert_eq!(plan.member(&plan.nodes[1]).taints, plan.nodes[1].taints);
}

#[test]
fn a_duplicate_key_is_refused() {
    let said = refusal("  cpus: 2\n", "  cpus: 2\n  cpus: 4\n");
    assert!(said.contains("`cpus` is given twice"), "{said}");
}

#[test]
fn all_problems_are_told_at_once() {
    let said = refusal(
        "  memory: 4GiB\n  disk: 40GiB\n  gateway: 192.168.3.1\n",
        "  memory: 1MiB\n  disk: 1MiB\n",
    );
    assert!(
        said.contains("memory") && said.contains("disk") && said.contains("no gateway"),
        "{said}"
    );
}

#[test]
fn rendered_artefacts() {
    use nodegraft::core::domain_xml::HostFacts;
    use nodegraft::core::host_key::HostKey;
    use nodegraft::core::mark::Mark;
    use nodegraft::core::ownership::Owner;
    let draft = good()
        .add("nodes.1.mac", "52:54:00:aa:bb:cc")
        .add("nodes.1.mtu", 1400)
        .add("nodes.1.search", json!(["lan"]));
    let plan = plan(&draft.text());
    let node = &plan.nodes[1];
    let key = HostKey {
        public: "ssh-ed25519 PUBLIC".into(),
        private: Some("PRIVATE".into()),
    };
    let facts = HostFacts {
        virt_type: "kvm".into(),
        disk_path: "/pool/disk".into(),
        seed_path: "/pool/seed".into(),
    };
    let owner = Owner::of("homelab", &node.name, "0123456789abcdef0123456789abcdef");
    let mark = Mark {
        host_key: key.public.clone(),
        made_with: node.made_with(),
        ..Mark::new(owner, &node.address, Vec::new())
    };
    let domain = plan.domain_xml(node, &facts, &mark).unwrap();
    assert!(!domain.contains("PRIVATE"));
    let mut all = domain;
    for (name, text) in plan
        .seed_files(
            node,
            mark.owner.machine_id(),
            &key,
            &["ssh-ed25519 LOGIN".into()],
        )
        .unwrap()
    {
        all.push_str(&format!("\n--- {name}\n{text}"));
    }
    for step in &node.steps {
        all.push_str(&format!("\n--- {}\n{}", step.name, step.script));
    }
    all.push_str(
        &nodegraft::core::bootstrap::bootstrap_kubeconfig(
            &plan.templates,
            "https://192.168.3.101:6443",
            "Q0E=",
            "abcdef.0123456789abcdef",
        )
        .unwrap(),
    );
    insta::assert_snapshot!(all);
}

#[test]
fn a_blanked_seed_has_the_same_instance_and_no_private_key() {
    use nodegraft::core::host_key::HostKey;
    let plan = plan(GOOD);
    let files = |private: Option<&str>| {
        let key = HostKey {
            public: "ssh-ed25519 PUBLIC".into(),
            private: private.map(str::to_owned),
        };
        plan.seed_files(&plan.nodes[0], "0123", &key, &[]).unwrap()
    };
    let (full, blank) = (files(Some("PRIVATE")), files(None));
    assert_eq!(full[0], blank[0], "meta-data carries the instance id");
    assert!(full[1].1.contains("PRIVATE") && !blank[1].1.contains("PRIVATE"));
}

#[test]
fn every_rendered_script_passes_shellcheck() {
    use std::io::Write;
    use std::process::{Command, Stdio};
    let vars = json!({
        "ntp_servers": ["ntp.lan"],
        "apt_sources": ["deb http://m/ x main"],
        "registry_mirrors": ["https://m"],
    });
    let url = json!({"version": "1.35.4", "url": "http://h/kubelet", "sha256": "a".repeat(64)});
    let docker = |profile: &str, kubelet| {
        good()
            .set("defaults.profile", profile)
            .set("defaults.kubelet", kubelet)
    };
    for draft in [
        good(),
        good()
            .add("defaults.vars", vars)
            .set("defaults.kubelet", url),
        docker(
            "debian-docker",
            json!({"version": "1.18.3", "file": "./kubelet"}),
        ),
        docker(
            "centos7-docker",
            json!({"version": "1.18.3", "package": "kubelet-1.18.3"}),
        ),
    ] {
        let plan = plan(&draft.text());
        let steps = plan.nodes[0]
            .steps
            .iter()
            .map(|step| (step.name.clone(), step.script.clone()));
        let join = ["join/reset.sh", "join/start.sh"].map(|name| {
            (
                name.to_owned(),
                plan.templates.render(name, &serde_json::json!({})).unwrap(),
            )
        });
        for (name, script) in steps.chain(join) {
            let mut check = Command::new("shellcheck")
                .args(["-s", "bash", "-"])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .expect("shellcheck is installed by `make check`");
            check
                .stdin
                .take()
                .unwrap()
                .write_all(script.as_bytes())
                .unwrap();
            let output = check.wait_with_output().unwrap();
            assert!(
                output.status.success(),
                "{name}:\n{}",
                String::from_utf8_lossy(&output.stdout)
            );
        }
    }
}

/// What the seed's chapter 7 makes with four `kubectl config` commands.
#[test]
fn the_bootstrap_kubeconfig_is_the_seeds() {
    let templates = nodegraft::core::template::Templates::built_in();
    let text = nodegraft::core::bootstrap::bootstrap_kubeconfig(
        &templates,
        "https://192.168.3.101:6443",
        "Q0E=",
        "398c7c.b18a35f794625922",
    )
    .unwrap();
    let made: serde_json::Value = serde_saphyr::from_str(&text).unwrap();
    let seed = serde_json::json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "kubernetes", "cluster": {"certificate-authority-data": "Q0E=", "server": "https://192.168.3.101:6443"}}],
        "users": [{"name": "kubelet-bootstrap", "user": {"token": "398c7c.b18a35f794625922"}}],
        "contexts": [{"name": "kubelet-bootstrap@kubernetes", "context": {"cluster": "kubernetes", "user": "kubelet-bootstrap"}}],
        "current-context": "kubelet-bootstrap@kubernetes",
    });
    assert_eq!(made, seed);
}
