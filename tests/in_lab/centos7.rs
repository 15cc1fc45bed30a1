//! The profile `centos7-docker`, run by a real bash in a root tree laid out like CentOS 7. What would fetch or start
//! something is a recorder: it notes how it was called and lays down what the real one would. Needs root for chroot.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use nodegraft::core::plan::Plan;
use nodegraft::core::spec::Spec;
use nodegraft::core::template::Templates;

use super::{must, text};

/// Stands for every command below; told apart by its name.
const RECORDER: &str = r#"#!/bin/bash
name=${0##*/}
echo "$name $*" >> /calls
case $name in
  yum)
    [[ $1 == -y && $2 == install ]] || exit 9
    for what in "${@:3}"; do
      package=${what##*/}; package=${package%.rpm}
      [[ $what == /* && -e /installed/$package ]] && { echo 'Error: Nothing to do'; exit 1; }
      : > "/installed/$package"
    done ;;
  yumdownloader) [[ $1 == --destdir && -d $2 && $# -eq 3 ]] || exit 9; : > "$2/$3.rpm" ;;
  yum-config-manager) [[ -e /installed/yum-utils && $1 == --add-repo ]] || exit 9; echo "$2" > /etc/yum.repos.d/docker-ce.repo ;;
  rpm) for package in "${@:2}"; do [[ -e /installed/$package ]] || exit 1; done ;;
  curl) [[ $1 == -fsSL && $2 == -o && $4 == http* ]] || exit 9; echo "from $4" > "$3" ;;
  ntpdate) [[ -e /installed/ntpdate ]] || exit 127; [[ ! -e /active/ntpd ]] || exit 1 ;;
  ntpq) [[ -e /active/ntpd ]] || exit 1 ;;
  setenforce) [[ ! -e /permissive ]] || exit 1; : > /permissive ;;
  systemctl)
    case $1 in
      try-restart) ;;
      is-active) [[ -e /active/$3 ]] || exit 3 ;;
      restart) : > "/active/$2" ;;
      enable) [[ $2 != --now ]] || : > "/active/$3" ;;
      disable | stop) rm -f "/active/$2"; [[ $2 != NetworkManager ]] || exit 1 ;;
    esac ;;
  docker) [[ -e /active/docker && $1 == pull ]] || exit 1 ;;
esac
exit 0
"#;

const RECORDED: [&str; 14] = [
    "yum",
    "yumdownloader",
    "yum-config-manager",
    "rpm",
    "curl",
    "ntpdate",
    "ntpq",
    "setenforce",
    "systemctl",
    "docker",
    "timedatectl",
    "modprobe",
    "sysctl",
    "swapoff",
];

/// Copies a program and the libraries it is linked with.
fn install(root: &Path, program: &str) {
    let found = Command::new("sh")
        .args(["-c", &format!("readlink -f \"$(command -v {program})\"")])
        .output()
        .unwrap();
    let path = String::from_utf8(found.stdout).unwrap().trim().to_owned();
    fs::copy(&path, root.join("bin").join(program)).unwrap();
    let libraries = text(&Command::new("ldd").arg(&path).output().unwrap());
    for library in libraries
        .split_whitespace()
        .filter(|word| word.starts_with('/'))
    {
        let to = root.join(library.trim_start_matches('/'));
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(library, to).unwrap();
    }
}

/// A root tree for `chroot`: programs with their libraries, recorders in the place of others, and text files.
pub fn root_tree(
    root: &Path,
    dirs: &[&str],
    programs: &[&str],
    recorded: &[&str],
    recorder: &str,
    files: &[(&str, &str)],
) {
    for dir in dirs {
        fs::create_dir_all(root.join(dir)).unwrap();
    }
    for program in programs {
        install(root, program);
    }
    for name in recorded {
        let path = root.join("bin").join(name);
        fs::write(&path, recorder).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    must(
        "mknod",
        &[
            "-m",
            "666",
            root.join("dev/null").to_str().unwrap(),
            "c",
            "1",
            "3",
        ],
    );
    for (path, content) in files {
        fs::write(root.join(path), content).unwrap();
    }
}

const DIRS: [&str; 14] = [
    "bin",
    "dev",
    "tmp",
    "opt",
    "installed",
    "active",
    "var/lib",
    "usr/bin",
    "etc/selinux",
    "etc/ssh",
    "etc/yum.repos.d",
    "etc/sysctl.d",
    "etc/modules-load.d",
    "etc/systemd/system",
];

const FILES: [(&str, &str); 4] = [
    (
        "etc/selinux/config",
        "SELINUX=enforcing\nSELINUXTYPE=targeted\n",
    ),
    ("etc/ssh/sshd_config", "Port 22\n#UseDNS yes\nUsePAM yes\n"),
    ("etc/yum.repos.d/CentOS-Base.repo", "[base]\noriginal\n"),
    (
        "etc/fstab",
        "/dev/vda1 / xfs defaults 0 0\n/dev/vda2 swap swap defaults 0 0\n",
    ),
];

fn plan() -> Plan {
    let spec = "version: 1\ncluster: {name: seed, kubeconfig: k}\ndefaults: {template: CentOS7.6.1810.x86_64.qcow2, profile: centos7-docker, gateway: 192.168.3.1}\n\
                nodes:\n  - {name: 192.168.3.104, address: 192.168.3.104/24, kubelet: {version: 1.18.3, package: kubelet-1.18.3}}\n";
    Plan::new(
        &Spec::parse(spec, "seed.yaml").unwrap(),
        Templates::built_in(),
        &[],
    )
    .unwrap()
}

#[test]
#[ignore = "needs the lab: make test"]
fn the_seeds_scripts_do_what_the_seed_does_and_may_run_twice() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    root_tree(
        root,
        &DIRS,
        &[
            "bash",
            "sed",
            "grep",
            "cat",
            "mkdir",
            "mv",
            "rm",
            "chmod",
            "sha256sum",
        ],
        &RECORDED,
        RECORDER,
        &FILES,
    );
    let kubelet = root.join("usr/bin/kubelet");
    fs::write(&kubelet, "#!/bin/bash\necho Kubernetes v1.18.3\n").unwrap();
    fs::set_permissions(&kubelet, fs::Permissions::from_mode(0o755)).unwrap();
    let plan = plan();
    let steps = &plan.nodes[0].steps;
    assert_eq!(
        steps
            .iter()
            .map(|step| step.name.as_str())
            .collect::<Vec<_>>(),
        ["init", "docker", "kubelet"]
    );
    let read = |path: &str| {
        fs::read_to_string(root.join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
    };
    let mut calls = Vec::new();
    for round in 1..=2 {
        fs::write(root.join("calls"), "").unwrap();
        for step in steps {
            fs::write(root.join("tmp/step.sh"), &step.script).unwrap();
            let output = Command::new("chroot")
                .arg(root)
                .args(["/bin/bash", "-c", "PATH=/bin exec /bin/bash /tmp/step.sh"])
                .output()
                .unwrap();
            assert!(
                output.status.success(),
                "run {round} of {}: {}",
                step.name,
                text(&output)
            );
        }
        calls.push(read("calls"));
        assert_tree(&read);
    }
    // The order of the seed's own page.
    let first: Vec<&str> = calls[0].lines().collect();
    let wanted = [
        "setenforce 0",
        "systemctl restart sshd",
        "systemctl disable firewalld",
        "curl -fsSL -o /etc/yum.repos.d/CentOS-Base.repo http://mirrors.aliyun.com/repo/Centos-7.repo",
        "curl -fsSL -o /etc/yum.repos.d/epel.repo http://mirrors.aliyun.com/repo/epel-7.repo",
        "timedatectl set-timezone Asia/Shanghai",
        "yum -y install ntpdate",
        "ntpdate ntp1.aliyun.com",
        "timedatectl set-local-rtc 0",
        "systemctl restart rsyslog",
        "systemctl restart crond",
        "yum -y install ntp",
        "systemctl enable --now ntpd",
        "ntpq -p",
        "modprobe br_netfilter",
        "sysctl -p /etc/sysctl.d/k8s.conf",
        "yum -y install yum-utils",
        "yum-config-manager --add-repo https://mirrors.aliyun.com/docker-ce/linux/centos/docker-ce.repo",
        "yum -y install docker-ce-18.06.1.ce-3.el7",
        "systemctl enable --now docker",
        "docker pull registry.cn-hangzhou.aliyuncs.com/google_containers/pause:3.2",
        "yumdownloader --destdir /opt/rpms/ kubernetes-cni-0.7.5-0",
        "yumdownloader --destdir /opt/rpms/ kubelet-1.18.3",
        "yum -y install /opt/rpms/kubelet-1.18.3.rpm /opt/rpms/kubernetes-cni-0.7.5-0.rpm",
        "systemctl enable kubelet",
    ];
    let mut rest = first.iter();
    for call in wanted {
        assert!(
            rest.any(|line| *line == call),
            "`{call}` is missing, or out of order, in:\n{}",
            calls[0]
        );
    }
    assert!(
        !calls[1].contains("ntpdate ntp1"),
        "with ntpd up, ntpdate would fail"
    );
    assert!(
        !calls[1].contains("/opt/rpms"),
        "what is installed is not installed again"
    );
    // What is there counts, and not what was asked for.
    fs::write(&kubelet, "#!/bin/bash\necho Kubernetes v1.19.0\n").unwrap();
    fs::write(root.join("tmp/step.sh"), &steps[2].script).unwrap();
    let other = Command::new("chroot")
        .arg(root)
        .args(["/bin/bash", "-c", "PATH=/bin exec /bin/bash /tmp/step.sh"])
        .output()
        .unwrap();
    assert!(!other.status.success());
    assert!(
        text(&other).contains("wants kubelet 1.18.3, and /usr/bin/kubelet is: Kubernetes v1.19.0"),
        "{}",
        text(&other)
    );
}

fn assert_tree(read: &impl Fn(&str) -> String) {
    assert_eq!(
        read("etc/selinux/config"),
        "SELINUX=disabled\nSELINUXTYPE=targeted\n"
    );
    assert_eq!(
        read("etc/ssh/sshd_config"),
        "Port 22\nUseDNS no\nUsePAM yes\n"
    );
    assert_eq!(
        read("etc/yum.repos.d/CentOS-Base.repo.backup"),
        "[base]\noriginal\n",
        "the original is kept, after a second run too"
    );
    assert!(read("etc/yum.repos.d/CentOS-Base.repo").contains("Centos-7.repo"));
    assert_eq!(
        read("etc/ntp.conf"),
        "driftfile /var/lib/ntp/drift\nrestrict default nomodify notrap nopeer noquery\nrestrict 127.0.0.1\nrestrict ::1\n\
         server ntp1.aliyun.com iburst\nlogfile /var/log/ntp.log\nincludefile /etc/ntp/crypto/pw\nkeys /etc/ntp/keys\ndisable monitor\n"
    );
    assert_eq!(
        read("etc/sysctl.d/k8s.conf"),
        "net.ipv4.ip_forward = 1\nnet.bridge.bridge-nf-call-ip6tables = 1\nnet.bridge.bridge-nf-call-iptables = 1\n"
    );
    assert_eq!(
        read("etc/fstab").matches("# off for the kubelet: ").count(),
        1
    );
    let daemon: serde_json::Value = serde_json::from_str(&read("etc/docker/daemon.json")).unwrap();
    assert_eq!(
        daemon,
        serde_json::json!({"exec-opts": ["native.cgroupdriver=systemd"], "registry-mirrors": ["https://2xdz2l32.mirror.aliyuncs.com"]})
    );
    assert_eq!(
        read("etc/yum.repos.d/kubernetes.repo"),
        "[kubernetes]\nname=Kubernetes\nbaseurl=https://mirrors.aliyun.com/kubernetes/yum/repos/kubernetes-el7-x86_64/\nenabled=1\ngpgcheck=0\nexclude=kubelet\n"
    );
    assert_kubelet(
        &read("var/lib/kubelet/config.yaml"),
        &read("etc/systemd/system/kubelet.service.d/10-nodegraft.conf"),
    );
}

/// The seed's config.yaml, key by key, and its flags.
fn assert_kubelet(config: &str, unit: &str) {
    let config: BTreeMap<String, serde_json::Value> = serde_saphyr::from_str(config).unwrap();
    let mut wanted = BTreeMap::from([
        (
            "apiVersion".to_owned(),
            serde_json::json!("kubelet.config.k8s.io/v1beta1"),
        ),
        ("kind".to_owned(), serde_json::json!("KubeletConfiguration")),
        (
            "authentication".to_owned(),
            serde_json::json!({"anonymous": {"enabled": false}, "webhook": {"cacheTTL": "0s", "enabled": true}, "x509": {"clientCAFile": "/etc/kubernetes/pki/ca.crt"}}),
        ),
        (
            "authorization".to_owned(),
            serde_json::json!({"mode": "Webhook", "webhook": {"cacheAuthorizedTTL": "0s", "cacheUnauthorizedTTL": "0s"}}),
        ),
        ("clusterDNS".to_owned(), serde_json::json!(["10.96.0.10"])),
        (
            "clusterDomain".to_owned(),
            serde_json::json!("cluster.local"),
        ),
        (
            "healthzBindAddress".to_owned(),
            serde_json::json!("127.0.0.1"),
        ),
        ("healthzPort".to_owned(), serde_json::json!(10248)),
        ("rotateCertificates".to_owned(), serde_json::json!(true)),
        (
            "staticPodPath".to_owned(),
            serde_json::json!("/etc/kubernetes/manifests"),
        ),
    ]);
    for zero in [
        "cpuManagerReconcilePeriod",
        "evictionPressureTransitionPeriod",
        "fileCheckFrequency",
        "httpCheckFrequency",
        "imageMinimumGCAge",
        "nodeStatusReportFrequency",
        "nodeStatusUpdateFrequency",
        "runtimeRequestTimeout",
        "streamingConnectionIdleTimeout",
        "syncFrequency",
        "volumeStatsAggPeriod",
    ] {
        wanted.insert(zero.to_owned(), serde_json::json!("0s"));
    }
    assert_eq!(config, wanted);
    for flag in [
        "--bootstrap-kubeconfig=/etc/kubernetes/bootstrap-kubelet.conf",
        "--kubeconfig=/etc/kubernetes/kubelet.conf",
        "--config=/var/lib/kubelet/config.yaml",
        "--cgroup-driver=systemd",
        "--hostname-override=192.168.3.104",
        "--network-plugin=cni",
        "--pod-infra-container-image=registry.aliyuncs.com/google_containers/pause:3.2",
        "--kubelet-cgroups=/systemd/system.slice",
    ] {
        assert!(unit.contains(flag), "{flag} is missing in:\n{unit}");
    }
}
