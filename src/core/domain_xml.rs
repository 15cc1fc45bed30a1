//! A node's domain as libvirt is given it: `templates/domain.xml`, with the node's mark in it.

use serde::Serialize;

use crate::core::error::Result;
use crate::core::mark::Mark;
use crate::core::plan::{Node, Plan};

/// What only the host knows.
#[derive(Debug, Clone, Serialize)]
pub struct HostFacts {
    /// `kvm` or `qemu`.
    pub virt_type: String,
    pub disk_path: String,
    pub seed_path: String,
}

impl Plan {
    pub fn domain_xml(&self, node: &Node, host: &HostFacts, mark: &Mark) -> Result<String> {
        let values = serde_json::json!({
            "node": node, "uuid": mark.owner.uuid(), "mark": mark.element(), "virt_type": host.virt_type, "disk_path": host.disk_path,
            "seed_path": host.seed_path, "disk_cache": self.host.disk_cache,
        });
        self.templates.render("domain.xml", &values)
    }
}
