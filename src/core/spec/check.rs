//! What can be known to be wrong without a host or a cluster.

use std::collections::HashMap;
use std::net::IpAddr;

use ipnet::IpNet;
use serde_saphyr::{Location, Spanned};

use super::refusal::Problem;
use super::{Kubelet, Node, Settings, Size, Spec, VERSION};
use crate::core::label;
use crate::core::server;
use crate::core::taint::Taint;

impl Spec {
    pub(super) fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        if !is_label(&self.cluster.name.value) {
            problems.push(unnameable(&self.cluster.name));
        }
        let mut problem = |at: Location, message: String, help: &str| {
            problems.push(Problem {
                at,
                message,
                help: help.to_owned(),
            });
        };
        if self.version.value != VERSION {
            problem(
                self.version.referenced,
                format!(
                    "version {} is not known to this nodegraft",
                    self.version.value
                ),
                "write `version: 1`",
            );
        }
        match (&self.cluster.kubeconfig, &self.cluster.control_plane) {
            (Some(_), Some(at)) => problem(
                at.referenced,
                "both `kubeconfig` and `control_plane` are given".into(),
                "keep one: a kubeconfig on this machine, or a host to read admin.conf from",
            ),
            (None, None) if self.cluster.join => problem(
                self.cluster.name.referenced,
                "the cluster has neither `kubeconfig` nor `control_plane`".into(),
                "add `kubeconfig: ~/.kube/config`, or `control_plane: root@192.168.3.101`, or `join: false` for machines only",
            ),
            _ => {}
        }
        if self.nodes.is_empty() {
            problem(
                self.cluster.name.referenced,
                "the spec has no nodes".into(),
                "list at least one under `nodes:`",
            );
        }
        for duplicate in duplicates(self.nodes.iter().map(|n| &n.name)) {
            problem(
                duplicate.referenced,
                format!("the name `{}` is given twice", duplicate.value),
                "names are unique in a spec: change one",
            );
        }
        let addresses: Vec<_> = self
            .nodes
            .iter()
            .filter_map(|n| {
                Some(Spanned::new(
                    parse_address(&n.address.value).ok()?.addr(),
                    n.address.referenced,
                    n.address.defined,
                ))
            })
            .collect();
        for duplicate in duplicates(addresses.iter()) {
            problem(
                duplicate.referenced,
                format!("the address {} is given to two nodes", duplicate.value),
                "every node needs an address of its own",
            );
        }
        let macs: Vec<_> = self.nodes.iter().filter_map(|n| n.mac.as_ref()).collect();
        for duplicate in duplicates(macs.into_iter()) {
            problem(
                duplicate.referenced,
                format!("the MAC {} is given twice", duplicate.value),
                "leave `mac` out: one is derived from the name",
            );
        }
        if let Some(server) = &self.cluster.server
            && let Err((message, help)) = server::check(&server.value)
        {
            problem(server.referenced, message, help);
        }
        if let Some(user) = &self.ssh.user
            && !is_login(&user.value)
        {
            problem(
                user.referenced,
                format!("`{}` cannot be a login name", user.value),
                "use lower-case letters, digits, `-` and `_`, 32 at most, starting with a letter",
            );
        }
        for key in &self.ssh.authorized_keys {
            if !is_public_key(&key.value) {
                problem(
                    key.referenced,
                    format!("`{}` is not a public key", shortened(&key.value)),
                    "write the key itself, the line in its .pub file: ssh-ed25519 AAAA... you@host",
                );
            }
        }
        for settings in
            std::iter::once(self.defaults.settings()).chain(self.nodes.iter().map(Node::settings))
        {
            setting_problems(settings, &mut problem);
        }
        for node in &self.nodes {
            self.node_problems(node, &mut problem);
        }
        problems
    }

    fn node_problems(&self, node: &Node, problem: &mut impl FnMut(Location, String, &str)) {
        if !is_node_name(&node.name.value) {
            problem(
                node.name.referenced,
                format!("`{}` cannot name a Kubernetes node", node.name.value),
                "use lower-case letters, digits, `-` and `.`, 63 at most, starting and ending with a letter or digit",
            );
        } else if node.name.value == STATE_FILE {
            problem(
                node.name.referenced,
                format!("`{STATE_FILE}` cannot name a node: nodegraft keeps a file of that name"),
                "give the node another name",
            );
        }
        let (own, defaults) = (node.settings(), self.defaults.settings());
        let gateway = own.gateway.or(defaults.gateway);
        match parse_address(&node.address.value) {
            Err(message) => problem(
                node.address.referenced,
                message,
                "write the address with its prefix length, for example 192.168.3.104/24",
            ),
            Ok(net)
                if net.addr() == net.network() && net.prefix_len() < net.max_prefix_len() - 1 =>
            {
                problem(
                    node.address.referenced,
                    format!("{} is the address of the network itself", net.addr()),
                    "give the node an address inside the network",
                )
            }
            Ok(IpNet::V4(net)) if net.addr() == net.broadcast() && net.prefix_len() < 31 => {
                problem(
                    node.address.referenced,
                    format!("{} is the broadcast address of {}", net.addr(), net.trunc()),
                    "give the node an address inside the network",
                )
            }
            Ok(net) => match gateway {
                None => problem(
                    node.address.referenced,
                    format!("node {} has no gateway", node.name.value),
                    "set `gateway` under `defaults`, or for this node",
                ),
                Some(gateway) if !net.contains(&gateway.value) => problem(
                    node.address.referenced,
                    format!(
                        "{} is outside the network of its gateway {}: {} does not hold it",
                        net.addr(),
                        gateway.value,
                        net.trunc()
                    ),
                    "correct the address, its prefix length, or the gateway",
                ),
                Some(gateway) if net.addr() == gateway.value => problem(
                    node.address.referenced,
                    format!("{} is the gateway's own address", net.addr()),
                    "give the node an address of its own",
                ),
                Some(_) => {}
            },
        }
        if let Some(mac) = &node.mac
            && !is_mac(&mac.value)
        {
            problem(
                mac.referenced,
                format!("`{}` is not a unicast MAC address", mac.value),
                "write six pairs of hex digits, for example 52:54:00:12:34:56, quoted",
            );
        }
        for (key, present) in [
            ("template", own.template.or(defaults.template).is_some()),
            (
                "profile",
                own.profile.or(defaults.profile).is_some() || !self.cluster.join,
            ),
        ] {
            if !present {
                problem(
                    node.name.referenced,
                    format!("node {} has no `{key}`", node.name.value),
                    "set it under `defaults`, or for this node",
                );
            }
        }
    }
}

/// What `defaults` or a node says that can be had nowhere.
fn setting_problems(settings: Settings<'_>, problem: &mut impl FnMut(Location, String, &str)) {
    let mut within = |key: &str, value: Option<(Location, u64)>, least, most| {
        let words = |value: u64| match key {
            "memory" | "disk" => Size(value).to_string(),
            _ => value.to_string(),
        };
        match value {
            Some((at, value)) if value < least => problem(
                at,
                format!("{key} {} is less than {}", words(value), words(least)),
                "ask for more",
            ),
            Some((at, value)) if value > most => problem(
                at,
                format!("{key} {} is more than {}", words(value), words(most)),
                "ask for less",
            ),
            _ => {}
        }
    };
    let number = |number: &Spanned<u32>| (number.referenced, number.value.into());
    let bytes = |size: &Spanned<Size>| (size.referenced, size.value.0);
    within("cpus", settings.cpus.map(number), 1, MOST_CPUS);
    within("memory", settings.memory.map(bytes), 256 << 20, MOST_MEMORY);
    within("disk", settings.disk.map(bytes), 1 << 30, MOST_DISK);
    within("mtu", settings.mtu.map(number), 576, 65_535);
    if let Some(kubelet) = settings.kubelet
        && let Err((message, help)) = check_kubelet(&kubelet.value)
    {
        problem(kubelet.referenced, message, help);
    }
    mark_problems(settings, problem);
}

/// Labels and taints that Kubernetes would not take.
fn mark_problems(settings: Settings<'_>, problem: &mut impl FnMut(Location, String, &str)) {
    for (key, value) in settings.labels {
        if let Err(message) = label::check_key(key) {
            problem(
                value.referenced,
                format!("`{key}` cannot be a label's key: {message}"),
                "write it as in `disk` or `example.com/disk`",
            );
        }
        if let Err(message) = label::check_value(&value.value) {
            problem(
                value.referenced,
                format!(
                    "`{}` cannot be the value of the label `{key}`: {message}",
                    value.value
                ),
                "shorten it, or write `-` for what it may not have",
            );
        }
    }
    let mut seen: Vec<Taint> = Vec::new();
    for text in settings.taints {
        match text.value.parse::<Taint>() {
            Err(message) => problem(
                text.referenced,
                format!("`{}` is not a taint: {message}", text.value),
                "write it as `key=value:Effect` or `key:Effect`; effects are NoSchedule, PreferNoSchedule and NoExecute",
            ),
            Ok(taint) if seen.iter().any(|other| other.is_same(&taint)) => problem(
                text.referenced,
                format!(
                    "the taint `{}` with the effect {} is given twice",
                    taint.key,
                    taint.effect.as_str()
                ),
                "a Node has one taint of a key and an effect: keep one",
            ),
            Ok(taint) => seen.push(taint),
        }
    }
}

fn check_kubelet(kubelet: &Kubelet) -> Result<(), (String, &'static str)> {
    if crate::core::kubelet::Version::parse(&kubelet.version).is_none() {
        return Err((
            format!("`{}` is not a kubelet version", kubelet.version),
            "write it as in 1.35.4",
        ));
    }
    match (&kubelet.package, &kubelet.url, &kubelet.file) {
        (Some(_), None, None) | (None, None, Some(_)) if kubelet.sha256.is_none() => Ok(()),
        (None, Some(_), None) => match &kubelet.sha256 {
            Some(sum) if sum.len() == 64 && sum.chars().all(|c| c.is_ascii_hexdigit()) => Ok(()),
            Some(_) => Err((
                "the kubelet's sha256 is not 64 hex digits".into(),
                "run `sha256sum` on the file",
            )),
            None => Err((
                "a kubelet from a URL needs its sha256".into(),
                "add `sha256:` beside `url:`",
            )),
        },
        (None, None, None) => Err((
            "the kubelet has no source".into(),
            "give one of `package`, `url` with `sha256`, or `file`",
        )),
        _ => Err((
            "the kubelet has more than one source".into(),
            "give one of `package`, `url` with `sha256`, or `file`",
        )),
    }
}

pub fn unnameable(cluster: &Spanned<String>) -> Problem {
    Problem {
        at: cluster.referenced,
        message: format!("`{}` cannot name a cluster", cluster.value),
        help: "use lower-case letters, digits and `-`, 40 at most".into(),
    }
}

/// An address with its prefix length; a bare address is refused, since a guessed netmask costs an evening.
pub fn parse_address(text: &str) -> Result<IpNet, String> {
    if text.parse::<IpAddr>().is_ok() {
        return Err(format!("{text} has no prefix length"));
    }
    text.parse::<IpNet>()
        .map_err(|_| format!("`{text}` is not an address with a prefix length"))
}

pub fn is_label(text: &str) -> bool {
    text.len() <= 40
        && text.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        && text.ends_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        && text
            .chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
}

/// What the state directory of a cluster has beside a directory for each node.
const STATE_FILE: &str = "lock";

/// Of QEMU's largest machine.
const MOST_CPUS: u64 = 4096;
/// More than any x86 processor addresses.
const MOST_MEMORY: u64 = 64 << 40;
/// Of a qcow2 image with clusters of 64 KiB.
const MOST_DISK: u64 = 2 << 50;

/// As useradd takes it.
fn is_login(text: &str) -> bool {
    text.len() <= 32
        && text.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
        && text
            .chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_')
}

/// A line of an authorized_keys file: options perhaps, a type, a key in base64.
fn is_public_key(line: &str) -> bool {
    let words: Vec<&str> = line.split_whitespace().collect();
    !line.contains('\n')
        && words.windows(2).any(|pair| {
            let known = ["ssh-", "ecdsa-sha2-", "sk-ssh-", "sk-ecdsa-"];
            known.iter().any(|prefix| pair[0].starts_with(prefix)) && pair[1].starts_with("AAAA")
        })
}

fn shortened(text: &str) -> String {
    let mut short: String = text.chars().take(40).collect();
    if short.len() < text.len() {
        short.push_str("...");
    }
    short
}

/// Kubernetes' rule for node names, a DNS subdomain; and its label `kubernetes.io/hostname` has to hold it.
pub fn is_node_name(text: &str) -> bool {
    let edge = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    !text.is_empty()
        && text.len() <= 63
        && text.split('.').all(|label| {
            (1..=63).contains(&label.len())
                && label.starts_with(edge)
                && label.ends_with(edge)
                && label.chars().all(|c| edge(c) || c == '-')
        })
}

fn is_mac(text: &str) -> bool {
    let pairs: Vec<_> = text
        .split(':')
        .map(|pair| (pair.len(), u8::from_str_radix(pair, 16)))
        .collect();
    pairs.len() == 6
        && pairs.iter().all(|(len, value)| *len == 2 && value.is_ok())
        && matches!(pairs[0].1, Ok(first) if first & 1 == 0)
}

/// The second and later occurrences of each value.
fn duplicates<'a, T: std::hash::Hash + Eq + 'a>(
    values: impl Iterator<Item = &'a Spanned<T>>,
) -> Vec<&'a Spanned<T>> {
    let mut seen: HashMap<&T, ()> = HashMap::new();
    values
        .filter(|value| seen.insert(&value.value, ()).is_some())
        .collect()
}
