//! In what a node differs from its spec: key by key, as a person would write it. Pure.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use crate::core::mark::Mark;
use crate::core::plan::Node;
use crate::core::spec::Size;

/// One key in which a node is not as the spec says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// `memory`, `labels.disk`, `taints.gpu=true:NoSchedule`.
    pub key: String,
    /// `None` if it does not have it.
    pub is: Option<String>,
    /// `None` if it should not have it any more.
    pub wanted: Option<String>,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.is, &self.wanted) {
            (Some(is), Some(wanted)) => write!(
                f,
                "{} is {}, the spec says {}",
                self.key,
                quoted(is),
                quoted(wanted)
            ),
            (None, Some(wanted)) => write!(
                f,
                "{} is missing, the spec says {}",
                self.key,
                quoted(wanted)
            ),
            (Some(is), None) => write!(
                f,
                "{} is {}, the spec no longer has it",
                self.key,
                quoted(is)
            ),
            (None, None) => write!(f, "{} is as the spec says", self.key),
        }
    }
}

fn quoted(text: &str) -> &str {
    if text.is_empty() { "''" } else { text }
}

/// A VM as the host has it.
pub struct Machine<'a> {
    pub mark: &'a Mark,
    pub cpus: u32,
    /// Bytes.
    pub memory: u64,
    /// Bytes; `None` if its disk was not found.
    pub disk: Option<u64>,
}

/// What only a new VM can change.
pub fn of_machine(node: &Node, machine: &Machine<'_>) -> Vec<Difference> {
    let mut found = Vec::new();
    let mut compare = |key: &str, is: String, wanted: String| {
        if is != wanted {
            found.push(Difference {
                key: key.to_owned(),
                is: Some(is),
                wanted: Some(wanted),
            });
        }
    };
    compare("cpus", machine.cpus.to_string(), node.cpus.to_string());
    compare(
        "memory",
        Size(machine.memory).to_string(),
        Size(node.memory).to_string(),
    );
    if let Some(disk) = machine.disk {
        compare("disk", Size(disk).to_string(), Size(node.disk).to_string());
    }
    compare(
        "address",
        machine.mark.address.clone(),
        node.address.clone(),
    );
    for (key, wanted) in node.made_with() {
        if let Some(is) = machine.mark.made_with.get(&key) {
            compare(&key, is.clone(), wanted);
        }
    }
    found
}

impl Node {
    /// The settings that the guest took in when it was made: what differs from them only a new VM can give.
    pub fn made_with(&self) -> BTreeMap<String, String> {
        let list = |items: Vec<String>| items.join(" ");
        let word = |value: &dyn fmt::Debug| format!("{value:?}").to_lowercase();
        [
            ("pool", self.pool.clone()),
            ("template", self.template.clone()),
            ("clone", word(&self.clone)),
            ("first_boot", word(&self.first_boot)),
            ("network", self.network.to_string()),
            ("mac", self.mac.clone()),
            ("gateway", self.gateway.to_string()),
            (
                "dns",
                list(self.dns.iter().map(ToString::to_string).collect()),
            ),
            ("search", list(self.search.clone())),
            (
                "mtu",
                self.mtu.map(|mtu| mtu.to_string()).unwrap_or_default(),
            ),
            ("ssh.user", self.user.clone()),
        ]
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value))
        .collect()
    }
}

/// All of them in one line.
pub fn sentence(differences: &[Difference]) -> String {
    differences
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join("; ")
}
