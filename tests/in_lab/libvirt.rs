//! The lab's libvirt, asked by virsh: what is true there, not what nodegraft says of it.

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use super::{text, variable};

pub const POOL: &str = "kvmimage";

pub fn uri() -> String {
    variable("NODEGRAFT_LAB_URI")
}

/// Of the second host.
pub fn uri2() -> String {
    variable("NODEGRAFT_LAB_URI2")
}

pub fn state() -> PathBuf {
    PathBuf::from(variable("NODEGRAFT_LAB_STATE"))
}

fn output(uri: &str, args: &[&str]) -> Output {
    Command::new("virsh")
        .args(["-q", "-c", uri])
        .args(args)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

/// On the first host.
#[track_caller]
pub fn virsh(args: &[&str]) -> String {
    virsh_on(&uri(), args)
}

#[track_caller]
pub fn virsh_on(uri: &str, args: &[&str]) -> String {
    let output = output(uri, args);
    assert!(output.status.success(), "virsh {args:?}: {}", text(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// Of a call that may fail.
pub fn virsh_output(uri: &str, args: &[&str]) -> String {
    text(&output(uri, args))
}

pub fn domains(uri: &str) -> Vec<String> {
    virsh_on(uri, &["list", "--all", "--name"])
        .lines()
        .map(|line| line.trim().to_owned())
        .filter(|line| !line.is_empty())
        .collect()
}

pub fn has_domain(name: &str) -> bool {
    domains(&uri()).iter().any(|domain| domain == name)
}

pub fn runs(domain: &str) -> bool {
    virsh(&["domstate", domain]).trim() == "running"
}

/// The names of a pool's volumes, on the first host.
pub fn volumes(pool: &str) -> Vec<String> {
    virsh(&["vol-list", pool])
        .lines()
        .filter_map(|line| line.split_whitespace().next().map(str::to_owned))
        .collect()
}

/// The instance that a domain is, as its guest has it for a machine-id.
pub fn instance(domain: &str) -> String {
    virsh(&["domuuid", domain]).trim().replace('-', "")
}

/// The first value of this attribute in a domain's XML, or another.
pub fn attribute<'a>(xml: &'a str, name: &str) -> &'a str {
    let value = |quote| {
        let rest = xml.split_once(&format!("{name}={quote}"))?.1;
        Some(rest.split_once(quote)?.0)
    };
    value('\'')
        .or_else(|| value('"'))
        .unwrap_or_else(|| panic!("nothing has a {name} in:\n{xml}"))
}

pub fn mac(xml: &str) -> &str {
    attribute(xml, "mac address")
}

/// The guest's, as our mark pins it: type and base64.
pub fn host_key(domain: &str) -> String {
    attribute(&virsh(&["dumpxml", domain]), "host_key").to_owned()
}
