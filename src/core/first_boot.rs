//! What a guest's first boot reads: the files of the seed volume, for cloud-init and for our own unit; and that unit,
//! for images without cloud-init. The unit itself is `templates/first-boot/firstboot.sh`.

use crate::core::error::{Error, Result};
use crate::core::host_key::HostKey;
use crate::core::plan::{Node, Plan};
use crate::core::spec::{self, FirstBoot};
use crate::core::template::Templates;

/// The files of the seed volume that are templates.
const SEED_TEMPLATES: [(&str, &str); 10] = [
    ("meta-data", "cloud-init/meta-data"),
    ("user-data", "cloud-init/user-data"),
    ("network-config", "cloud-init/network-config"),
    ("firstboot/identity", "first-boot/identity"),
    ("firstboot/ifcfg", "first-boot/ifcfg"),
    ("firstboot/interfaces", "first-boot/interfaces"),
    ("firstboot/netplan.yaml", "first-boot/netplan.yaml"),
    ("firstboot/keyfile", "first-boot/keyfile"),
    ("firstboot/networkd", "first-boot/networkd"),
    ("firstboot/resolv.conf", "first-boot/resolv.conf"),
];

fn lines<S: AsRef<str>>(lines: impl IntoIterator<Item = S>) -> String {
    lines
        .into_iter()
        .map(|line| format!("{}\n", line.as_ref()))
        .collect()
}

/// The unit, as it lies in a guest.
pub struct Unit {
    /// Path, text and mode.
    pub files: Vec<(&'static str, String, u32)>,
    /// Where systemd finds it, and the link that enables it.
    pub link: (&'static str, &'static str),
}

pub fn unit(templates: &Templates) -> Result<Unit> {
    const SERVICE: &str = "/etc/systemd/system/nodegraft-firstboot.service";
    const ENABLED: &str = "/etc/systemd/system/multi-user.target.wants/nodegraft-firstboot.service";
    let files = [
        (
            "/usr/lib/nodegraft/firstboot.sh",
            "first-boot/firstboot.sh",
            0o755,
        ),
        (SERVICE, "first-boot/nodegraft-firstboot.service", 0o644),
    ]
    .into_iter()
    .map(|(path, template, mode)| {
        Ok((
            path,
            templates.render(template, &serde_json::json!({}))?,
            mode,
        ))
    })
    .collect::<Result<_>>()?;
    Ok(Unit {
        files,
        link: (SERVICE, ENABLED),
    })
}

/// Whether a volume's name tells of a system that keeps its network in ifcfg files.
pub fn is_red_hat(template: &str) -> bool {
    let name = template.to_lowercase();
    ["centos", "rhel", "redhat", "scientific"]
        .iter()
        .any(|word| name.contains(word))
}

impl Plan {
    /// The files of the seed volume, by name: those of cloud-init, and those of our own first-boot unit.
    pub fn seed_files(
        &self,
        node: &Node,
        machine_id: &str,
        key: &HostKey,
        authorized_keys: &[String],
    ) -> Result<Vec<(&'static str, String)>> {
        let net = spec::parse_address(&node.address).map_err(Error::bug)?;
        let values = serde_json::json!({
            "node": node, "machine_id": machine_id, "netmask": net.netmask(),
            // The same for the blanked seed: its reader must not take the guest for a new one.
            "instance_id": format!("nodegraft-{machine_id}"),
            "authorized_keys": authorized_keys, "host_key_private": key.private, "host_key_public": key.public,
        });
        let mut files = SEED_TEMPLATES
            .iter()
            .map(|(name, template)| Ok((*name, self.templates.render(template, &values)?)))
            .collect::<Result<Vec<_>>>()?;
        files.push(("firstboot/authorized_keys", lines(authorized_keys)));
        if let Some(private) = &key.private {
            files.push(("firstboot/host_key", lines([private.trim_end()])));
            files.push(("firstboot/host_key.pub", lines([&key.public])));
        }
        Ok(files)
    }

    /// The file that will configure the guest's network as far as can be told from here, and what reads it: the guest
    /// itself decides.
    pub fn network_file(&self, node: &Node) -> Result<(&'static str, String)> {
        let system = match node.first_boot {
            FirstBoot::Image => "network-config",
            FirstBoot::Inject if is_red_hat(&node.template) => "firstboot/ifcfg",
            FirstBoot::Inject => "firstboot/interfaces",
        };
        let nobody = HostKey {
            public: String::new(),
            private: None,
        };
        let file = self
            .seed_files(node, "", &nobody, &[])?
            .into_iter()
            .find(|(name, _)| *name == system);
        let text = file.map(|(_, text)| text).unwrap_or_default();
        let reader = match system {
            "network-config" => "cloud-init",
            "firstboot/ifcfg" => "ifcfg",
            _ => "ifupdown",
        };
        Ok((reader, text.replace("@NIC@", "eth0")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::spec::Spec;

    fn network_file(node: &str) -> (&'static str, String) {
        let spec = format!(
            "version: 1\ncluster: {{name: c, join: false}}\ndefaults: {{gateway: 192.168.3.1, dns: [223.5.5.5]}}\nnodes:\n  - {node}\n"
        );
        let plan = Plan::new(
            &Spec::parse(&spec, "spec").unwrap(),
            Templates::built_in(),
            &[],
        )
        .unwrap();
        plan.network_file(&plan.nodes[0]).unwrap()
    }

    #[test]
    fn the_network_is_shown_as_the_guest_will_read_it() {
        let centos = "{name: 192.168.3.104, address: 192.168.3.104/24, template: CentOS7.6.1810.x86_64.qcow2, first_boot: inject}";
        let (reader, text) = network_file(centos);
        assert_eq!(reader, "ifcfg");
        assert!(
            text.starts_with("NAME=eth0\nDEVICE=eth0\n")
                && text.contains("NETMASK=255.255.255.0\n"),
            "{text}"
        );
        assert_eq!(
            network_file(
                "{name: a, address: 192.168.3.104/24, template: debian12.qcow2, first_boot: inject}"
            )
            .0,
            "ifupdown"
        );
        assert_eq!(
            network_file("{name: a, address: 192.168.3.104/24, template: debian13.qcow2}").0,
            "cloud-init"
        );
    }

    #[test]
    fn the_private_key_is_in_the_seed_once() {
        let spec = "version: 1\ncluster: {name: c, join: false}\nnodes:\n  - {name: a, address: 192.168.3.104/24, gateway: 192.168.3.1, template: t}\n";
        let plan = Plan::new(
            &Spec::parse(spec, "spec").unwrap(),
            Templates::built_in(),
            &[],
        )
        .unwrap();
        let files = |private: Option<&str>| {
            let key = HostKey {
                public: "ssh-ed25519 AAAA".into(),
                private: private.map(str::to_owned),
            };
            plan.seed_files(&plan.nodes[0], "0123", &key, &[]).unwrap()
        };
        let (full, blank) = (files(Some("PRIVATE")), files(None));
        let instance = |files: &[(&str, String)]| {
            files
                .iter()
                .find(|(name, _)| *name == "firstboot/identity")
                .unwrap()
                .1
                .clone()
        };
        assert_eq!(
            instance(&full),
            instance(&blank),
            "the guest would take itself for a new one"
        );
        assert!(blank.iter().all(|(_, text)| !text.contains("PRIVATE")));
        assert!(
            full.iter()
                .any(|(name, text)| *name == "firstboot/host_key" && text == "PRIVATE\n")
        );
    }
}
