//! The kubeconfig that a kubelet starts with: a token that may ask for a certificate, and nothing else.

use crate::core::error::Result;
use crate::core::template::Templates;

pub fn bootstrap_kubeconfig(
    templates: &Templates,
    server: &str,
    ca_base64: &str,
    token: &str,
) -> Result<String> {
    let values = serde_json::json!({"server": server, "ca_base64": ca_base64, "token": token});
    templates.render("join/bootstrap-kubelet.conf", &values)
}
