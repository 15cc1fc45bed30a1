//! The libvirt room, the only user of `virt`. Every call runs on a blocking thread and says what it did.
//! `storage.rs` has pools and volumes, `domain.rs` domains and our mark, `console.rs` the serial console.

pub mod console;
pub mod domain;
pub mod storage;

use std::time::Duration;

use virt::connect::Connect;
use virt::error::ErrorNumber;

use crate::error::{Error, Exit, Result};

const CONNECT_DEADLINE: Duration = Duration::from_secs(20);

/// A connection to one libvirt host. Cheap to clone.
#[derive(Clone)]
pub struct Host {
    conn: Connect,
    uri: String,
}

/// How a libvirt network stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NetworkState {
    Absent,
    Inactive,
    Active,
}

impl Host {
    /// Connects (virConnectOpen), within a deadline.
    pub async fn open(uri: &str) -> Result<Self> {
        let unreachable = |error: Error| {
            Error::new(format!("libvirt is not reachable at {uri}"))
                .because(error)
                .with_help(format!("is libvirtd running there, and may you use it? try: virsh -c '{uri}' version"))
                .with_exit(Exit::Unfit)
        };
        let address = uri.to_owned();
        let open = tokio::task::spawn_blocking(move || {
            // libvirt would print every error to stderr, across the progress bars.
            virt::error::clear_error_callback();
            Connect::open(Some(&address))
        });
        match tokio::time::timeout(CONNECT_DEADLINE, open).await {
            Ok(Ok(Ok(conn))) => Ok(Self { conn, uri: uri.to_owned() }),
            Ok(Ok(Err(error))) => Err(unreachable(plain(error))),
            Ok(Err(panic)) => Err(unreachable(Error::new(panic.to_string()))),
            Err(_) => Err(unreachable(Error::new(format!("no answer within {} s", CONNECT_DEADLINE.as_secs())))),
        }
    }

    pub fn uri(&self) -> &str {
        &self.uri
    }

    /// True where the host's files and devices are this machine's.
    pub fn is_local(&self) -> bool {
        let transport = self.uri.split("://").next().unwrap_or_default();
        let host = self.uri.split("://").nth(1).unwrap_or_default();
        host.starts_with('/') && !transport.contains("ssh") && !transport.contains("tls") && !transport.contains("tcp")
    }

    /// Runs blocking libvirt calls off the async threads; `what` is a gerund for the error.
    async fn call<T: Send + 'static>(
        &self,
        what: impl Into<String>,
        work: impl FnOnce(&Connect) -> Result<T, virt::error::Error> + Send + 'static,
    ) -> Result<T> {
        let conn = self.conn.clone();
        let what = what.into();
        let joined = tokio::task::spawn_blocking(move || work(&conn)).await;
        match joined {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => Err(Error::new(what).because(plain(error))),
            Err(panic) => Err(Error::new(what).because(panic)),
        }
    }

    /// The hypervisor's and libvirt's versions, as `(libvirt, hypervisor)`.
    pub async fn versions(&self) -> Result<(String, String)> {
        let spell = |v: u32| format!("{}.{}.{}", v / 1_000_000, v / 1_000 % 1_000, v % 1_000);
        self.call("asking for the versions", move |conn| Ok((spell(conn.lib_version()?), spell(conn.hyp_version()?)))).await
    }

    pub async fn network(&self, name: &str) -> Result<NetworkState> {
        let name = name.to_owned();
        self.call(format!("looking for the network {name}"), move |conn| {
            match absent_as_none(conn.lookup_network_by_name(&name), ErrorNumber::NoNetwork)? {
                None => Ok(NetworkState::Absent),
                Some(network) if network.is_active()? => Ok(NetworkState::Active),
                Some(_) => Ok(NetworkState::Inactive),
            }
        })
        .await
    }

    /// Whether libvirt offers KVM for x86_64 guests (virConnectGetDomainCapabilities). On a local host that is
    /// not proof: see [`kvm_works_here`].
    pub async fn offers_kvm(&self) -> Result<bool> {
        self.call("asking for KVM", |conn| match conn.domain_capabilities(None, Some("x86_64"), None, Some("kvm"), 0) {
            Ok(_) => Ok(true),
            Err(error) if error.code().is_any(vec![ErrorNumber::InvalidArg, ErrorNumber::ConfigUnsupported, ErrorNumber::NoSupport]) => {
                Ok(false)
            }
            Err(error) => Err(error),
        })
        .await
    }
}

/// `/dev/kvm` may exist, answer, and still hang every guest: believe it only where the processor shows vmx or svm.
pub fn kvm_works_here(cpuinfo: &str) -> bool {
    cpuinfo.lines().filter(|line| line.starts_with("flags")).any(|line| line.split_whitespace().any(|flag| flag == "vmx" || flag == "svm"))
}

/// libvirt's error as one clause of ours.
fn plain(error: virt::error::Error) -> Error {
    Error::new(error.message().trim().to_owned())
}

/// Turns "there is no such object" into `None`.
fn absent_as_none<T>(result: Result<T, virt::error::Error>, absent: ErrorNumber) -> Result<Option<T>, virt::error::Error> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.code().is(absent) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn kvm_is_believed_only_with_the_processors_word() {
        assert!(super::kvm_works_here("processor : 0\nflags : fpu svm sse\n"));
        assert!(!super::kvm_works_here("processor : 0\nflags : fpu sse\nmodel name : svm\n"));
    }
}
