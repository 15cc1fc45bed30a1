//! The first-boot script itself, in a root tree laid out like CentOS 7. In real guests: `debian::renderers`.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use nodegraft::core::host_key::HostKey;
use nodegraft::core::plan::Plan;
use nodegraft::core::spec::Spec;
use nodegraft::core::template::Templates;

use super::centos7::root_tree;
use super::text;

/// Stands for what a tree has no kernel for; told apart by its name.
const RECORDER: &str = r#"#!/bin/bash
name=${0##*/}
echo "$name $*" >> /calls
case $name in
  mount) [[ "$*" == '-t vfat -o ro /dev/disk/by-label/CIDATA /run/nodegraft/seed' ]] || exit 9; cp -r /seed/. "${@: -1}" ;;
  umount) [[ $1 != /run/nodegraft/seed ]] || rm -r /run/nodegraft/seed ;;
  systemctl) [[ $1 != is-enabled || $2 == network ]] || exit 1 ;;
  findmnt) case $3 in SOURCE) echo /dev/mapper/centos-root ;; FSTYPE) echo xfs ;; esac ;;
  lvs) echo '  centos' ;;
  pvs) echo '  /dev/vda2' ;;
  growpart) [[ $1 == /dev/vda && $2 == 2 ]] || exit 2; echo NOCHANGE; exit 1 ;;
  useradd) echo "$5:x:1000:1000::/home/$5:/bin/bash" >> /etc/passwd; mkdir -p "/home/$5" ;;
esac
exit 0
"#;

const RECORDED: [&str; 13] = [
    "mount",
    "umount",
    "udevadm",
    "systemctl",
    "findmnt",
    "lvs",
    "pvs",
    "pvresize",
    "lvextend",
    "growpart",
    "xfs_growfs",
    "restorecon",
    "useradd",
];

const DIRS: [&str; 10] = [
    "bin",
    "dev/disk/by-label",
    "etc/ssh",
    "etc/sysconfig/network-scripts",
    "root",
    "sys/class/net",
    "sys/class/block",
    "tmp",
    "usr/lib/nodegraft",
    "var/lib",
];

const PROGRAMS: [&str; 17] = [
    "bash", "sed", "grep", "cat", "mkdir", "mv", "rm", "cp", "chmod", "chown", "touch", "cut",
    "tr", "head", "id", "getent", "readlink",
];

const FILES: [(&str, &str); 9] = [
    ("dev/disk/by-label/CIDATA", ""),
    ("etc/passwd", "root:x:0:0:root:/root:/bin/bash\n"),
    ("etc/group", "root:x:0:\n"),
    ("etc/nsswitch.conf", "passwd: files\ngroup: files\n"),
    ("etc/hosts", "127.0.0.1 localhost\n"),
    ("etc/machine-id", "00000000000000000000000000000000\n"),
    ("etc/ssh/ssh_host_rsa_key", "of the template\n"),
    ("etc/sysconfig/network-scripts/ifcfg-lo", "DEVICE=lo\n"),
    (
        "etc/sysconfig/network-scripts/ifcfg-eth0",
        "DEVICE=eth0\nBOOTPROTO=dhcp\n",
    ),
];

/// The devices of a CentOS 7 guest: what `root_tree` cannot lay out as text.
fn devices(root: &Path) {
    symlink("bash", root.join("bin/sh")).unwrap();
    // Two interfaces, of which the second has the MAC; a root on LVM in the second partition.
    for (name, mac) in [
        ("docker0", "02:42:ac:11:00:02"),
        ("ens3", "52:54:00:00:00:01"),
        ("eth0", MAC),
    ] {
        let dir = root.join("sys/devices").join(name);
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("address"), format!("{mac}\n")).unwrap();
        if name != "docker0" {
            fs::create_dir(dir.join("device")).unwrap();
        }
        symlink(
            format!("../../devices/{name}"),
            root.join("sys/class/net").join(name),
        )
        .unwrap();
    }
    fs::create_dir_all(root.join("sys/devices/vda/vda2")).unwrap();
    fs::write(root.join("sys/devices/vda/vda2/partition"), "2\n").unwrap();
    symlink("../../devices/vda/vda2", root.join("sys/class/block/vda2")).unwrap();
}

const MAC: &str = "52:54:00:9a:bc:de";

/// The seed volume's files for a node of the seed's own page, laid out as a directory.
fn seed(root: &Path, user: &str, key: &str) {
    let spec = format!(
        "version: 1\ncluster: {{name: seed, join: false}}\nssh: {{user: {user}}}\ndefaults: {{template: CentOS7.6.1810.x86_64.qcow2, first_boot: inject, gateway: 192.168.3.1, dns: [223.5.5.5]}}\n\
         nodes:\n  - {{name: 192.168.3.104, address: 192.168.3.104/24, mac: '{MAC}'}}\n"
    );
    let plan = Plan::new(
        &Spec::parse(&spec, "seed.yaml").unwrap(),
        Templates::built_in(),
        &[],
    )
    .unwrap();
    let host_key = HostKey {
        public: format!("ssh-ed25519 {key} host"),
        private: Some(format!("PRIVATE {key}\n")),
    };
    let files = plan
        .seed_files(
            &plan.nodes[0],
            &if key == "FIRST" { "5e" } else { "6f" }.repeat(16),
            &host_key,
            &["ssh-ed25519 AAAA one".into(), "ssh-ed25519 BBBB two".into()],
        )
        .unwrap();
    for (name, text) in files {
        let path = root.join("seed").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
}

#[test]
#[ignore = "needs the lab: make test"]
fn a_centos_7_tree_gets_the_seeds_ifcfg() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    root_tree(root, &DIRS, &PROGRAMS, &RECORDED, RECORDER, &FILES);
    devices(root);
    seed(root, "root", "FIRST");
    for (path, script, _) in nodegraft::core::first_boot::unit(&Templates::built_in())
        .unwrap()
        .files
    {
        let path = root.join(path.trim_start_matches('/'));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, script).unwrap();
    }
    let boot = || {
        fs::write(root.join("calls"), "").unwrap();
        let output = Command::new("chroot")
            .arg(root)
            .args([
                "/bin/sh",
                "-c",
                "PATH=/bin exec sh /usr/lib/nodegraft/firstboot.sh",
            ])
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", text(&output));
        (
            text(&output),
            fs::read_to_string(root.join("calls")).unwrap(),
        )
    };
    let read = |path: &str| {
        fs::read_to_string(root.join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
    };
    let (said, calls) = boot();
    // As the seed's create_vm.sh shows it, to the letter.
    let ifcfg = "NAME=eth0\nDEVICE=eth0\nONBOOT=yes\nTYPE=Ethernet\nBOOTPROTO=none\nIPADDR=192.168.3.104\nNETMASK=255.255.255.0\nGATEWAY=192.168.3.1\nDNS1=223.5.5.5\n";
    assert_eq!(read("etc/sysconfig/network-scripts/ifcfg-eth0"), ifcfg);
    assert!(said.contains("eth0 is configured by ifcfg"), "{said}");
    assert_eq!(read("etc/hostname"), "node-192-168-3-104\n");
    assert!(read("etc/hosts").contains("127.0.1.1 node-192-168-3-104\n"));
    assert_eq!(read("etc/machine-id").trim().len(), 32);
    assert_ne!(read("etc/machine-id").trim(), "0".repeat(32));
    assert_eq!(
        read("root/.ssh/authorized_keys"),
        "ssh-ed25519 AAAA one\nssh-ed25519 BBBB two\n"
    );
    assert_eq!(read("etc/ssh/ssh_host_ed25519_key"), "PRIVATE FIRST\n");
    assert!(
        !root.join("etc/ssh/ssh_host_rsa_key").exists(),
        "clones would share the template's host key"
    );
    let mode = |path: &str| {
        std::os::unix::fs::PermissionsExt::mode(
            &fs::metadata(root.join(path)).unwrap().permissions(),
        ) & 0o777
    };
    assert_eq!(
        (
            mode("etc/ssh/ssh_host_ed25519_key"),
            mode("root/.ssh"),
            mode("root/.ssh/authorized_keys")
        ),
        (0o600, 0o700, 0o600)
    );
    let mut rest = calls.lines();
    for call in [
        "growpart /dev/vda 2",
        "pvresize /dev/vda2",
        "lvextend -l +100%FREE /dev/mapper/centos-root",
        "xfs_growfs /",
        "umount /run/nodegraft/seed",
    ] {
        assert!(
            rest.any(|line| line == call),
            "`{call}` is missing, or out of order, in:\n{calls}"
        );
    }

    let (said, calls) = boot();
    assert!(
        said.contains("done at an earlier boot") && !calls.contains("growpart"),
        "{said}{calls}"
    );
    // A clone of this very disk is another instance, here with a login user of its own.
    seed(root, "centos", "SECOND");
    let (said, _) = boot();
    assert!(
        said.contains("wrote /etc/ssh/ssh_host_ed25519_key"),
        "{said}"
    );
    assert_eq!(read("etc/ssh/ssh_host_ed25519_key"), "PRIVATE SECOND\n");
    assert_eq!(read("home/centos/.ssh/authorized_keys").lines().count(), 2);
    assert_eq!(
        read("etc/sudoers.d/nodegraft"),
        "centos ALL=(ALL) NOPASSWD:ALL\n"
    );
    // No volume, nothing to do: the image boots elsewhere, too.
    fs::remove_file(root.join("dev/disk/by-label/CIDATA")).unwrap();
    assert!(boot().0.contains("nothing to do"));
}
