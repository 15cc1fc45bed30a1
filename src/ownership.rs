//! Whose a thing is. A name proves nothing: two hosts, two users and two specs may all say `worker-1`. What is ours is
//! known by its instance, one life of one node, recorded in the domain's mark, in the guest's machine-id, on the Node
//! and on its token. Pure; the rooms only report what they see.

use serde::Serialize;

/// Of which cluster, which node and which life of it a thing is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Owner {
    pub cluster: String,
    pub node: String,
    /// 32 hex digits: the machine-id. Random for a VM of ours; a machine that was there before has its own.
    pub instance: String,
}
