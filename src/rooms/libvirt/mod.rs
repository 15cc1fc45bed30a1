//! The libvirt room, the only user of `virt`. Every call runs on a blocking thread, has a deadline and says what it did;
//! a connection that was lost is opened again. `storage.rs` has pools and volumes, `domain.rs` domains, `console.rs` the
//! serial console, `error.rs` what goes wrong.

pub mod console;
pub mod domain;
mod error;
pub mod storage;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use virt::connect::Connect;
use virt::error::ErrorNumber;

pub use self::error::Failure;
use crate::core::error::{Cause, Error, Result};

const CONNECT_DEADLINE: Duration = Duration::from_secs(20);
/// Of a call that moves no data.
const CALL_DEADLINE: Duration = Duration::from_secs(60);

/// A connection to one libvirt host. Cheap to clone; clones share it.
#[derive(Clone)]
pub struct Host {
    conn: Arc<Mutex<Connect>>,
    uri: String,
    /// Held, shared, by every call of this clone under way, also by one that nobody waits for any more.
    under_way: Arc<tokio::sync::RwLock<()>>,
}

/// Whether work was done before on a connection that was lost: its answer may be what was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Try {
    First,
    Again,
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
        let conn = connect(uri).await.map_err(|failure| {
            let help = failure.help().unwrap_or_else(|| {
                format!("is libvirtd running there, and do you have permission to use it? try: virsh -c '{uri}' version")
            });
            Error::during(format!("libvirt is not reachable at {uri}"), failure).with_help(help)
        })?;
        Ok(Self::new(conn, uri))
    }

    fn new(conn: Connect, uri: &str) -> Self {
        Self {
            conn: Arc::new(Mutex::new(conn)),
            uri: uri.to_owned(),
            under_way: Arc::default(),
        }
    }

    /// The same connection, whose calls [`Host::settle`] waits for apart from those of other clones.
    pub fn told_apart(&self) -> Self {
        Self {
            under_way: Arc::default(),
            ..self.clone()
        }
    }

    /// Waits for the calls under way: a future that was dropped does not end its call.
    pub async fn settle(&self) {
        let _ = tokio::time::timeout(CALL_DEADLINE, self.under_way.write()).await;
    }

    pub fn uri(&self) -> &str {
        &self.uri
    }

    /// True where the host's files and devices are this machine's.
    pub fn is_local(&self) -> bool {
        let transport = self.uri.split("://").next().unwrap_or_default();
        let host = self.uri.split("://").nth(1).unwrap_or_default();
        host.starts_with('/')
            && !transport.contains("ssh")
            && !transport.contains("tls")
            && !transport.contains("tcp")
    }

    /// Runs blocking libvirt calls off the async threads; `what` is a gerund for the error.
    async fn call<T: Send + 'static>(
        &self,
        what: impl Into<String>,
        work: impl Fn(&Connect) -> Result<T, virt::error::Error> + Send + Sync + 'static,
    ) -> Result<T> {
        self.call_within(CALL_DEADLINE, what, move |conn, _| work(conn))
            .await
    }

    /// The same with a deadline of its own. Where the connection is lost on the way a new one is opened and the work done
    /// once more: whatever is called here may be done twice, and `work` is told of the second time.
    async fn call_within<T: Send + 'static>(
        &self,
        limit: Duration,
        what: impl Into<String>,
        work: impl Fn(&Connect, Try) -> Result<T, virt::error::Error> + Send + Sync + 'static,
    ) -> Result<T> {
        let what = what.into();
        let work = Arc::new(work);
        let mut conn = self.current();
        for which in [Try::First, Try::Again] {
            let (on, todo) = (conn.clone(), Arc::clone(&work));
            let busy = Arc::clone(&self.under_way).read_owned().await;
            let done = tokio::task::spawn_blocking(move || {
                let _busy = busy;
                todo(&on, which).map_err(|error| (is_lost(&on), Failure::from(error)))
            });
            let (lost, failure) = match tokio::time::timeout(limit, done).await {
                Ok(Ok(Ok(value))) => return Ok(value),
                Ok(Ok(Err(failed))) => failed,
                Ok(Err(_)) => (false, Failure::Panicked),
                Err(_) => {
                    // Whatever hangs there would hold up the next call, too.
                    if let Ok(fresh) = connect(&self.uri).await {
                        self.replace(fresh);
                    }
                    (false, silent(&self.uri, limit))
                }
            };
            if !lost || which == Try::Again {
                return Err(Error::during(what, failure));
            }
            match connect(&self.uri).await {
                Ok(fresh) => {
                    self.replace(fresh.clone());
                    conn = fresh;
                }
                Err(reopening) => {
                    let lost = Failure::Lost {
                        uri: self.uri.clone(),
                        why: reopening.to_string(),
                    };
                    return Err(Error::during(what, lost));
                }
            }
        }
        unreachable!("the second round returns")
    }

    fn current(&self) -> Connect {
        self.conn
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn replace(&self, fresh: Connect) {
        *self.conn.lock().unwrap_or_else(PoisonError::into_inner) = fresh;
    }

    /// The hypervisor's and libvirt's versions, as `(libvirt, hypervisor)`.
    pub async fn versions(&self) -> Result<(String, String)> {
        let spell = |v: u32| format!("{}.{}.{}", v / 1_000_000, v / 1_000 % 1_000, v % 1_000);
        self.call("asking for the versions", move |conn| {
            Ok((spell(conn.lib_version()?), spell(conn.hyp_version()?)))
        })
        .await
    }

    pub async fn network(&self, name: &str) -> Result<NetworkState> {
        let name = name.to_owned();
        self.call(
            format!("looking for the network {name}"),
            move |conn| match absent_as_none(
                conn.lookup_network_by_name(&name),
                ErrorNumber::NoNetwork,
            )? {
                None => Ok(NetworkState::Absent),
                Some(network) if network.is_active()? => Ok(NetworkState::Active),
                Some(_) => Ok(NetworkState::Inactive),
            },
        )
        .await
    }

    /// Whether libvirt offers KVM for x86_64 guests (virConnectGetDomainCapabilities). On a local host that is
    /// not proof: see [`kvm_works_here`].
    pub async fn offers_kvm(&self) -> Result<bool> {
        self.call("asking for KVM", |conn| {
            match conn.domain_capabilities(None, Some("x86_64"), None, Some("kvm"), 0) {
                Ok(_) => Ok(true),
                Err(error)
                    if error.code().is_any(vec![
                        ErrorNumber::InvalidArg,
                        ErrorNumber::ConfigUnsupported,
                        ErrorNumber::NoSupport,
                    ]) =>
                {
                    Ok(false)
                }
                Err(error) => Err(error),
            }
        })
        .await
    }
}

/// `/dev/kvm` may exist, answer, and still hang every guest: believe it only where the processor shows vmx or svm.
pub fn kvm_works_here(cpuinfo: &str) -> bool {
    cpuinfo
        .lines()
        .filter(|line| line.starts_with("flags"))
        .any(|line| {
            line.split_whitespace()
                .any(|flag| flag == "vmx" || flag == "svm")
        })
}

/// A connection that nobody else shares, within a deadline.
async fn connect(uri: &str) -> Result<Connect, Failure> {
    let address = uri.to_owned();
    let open = tokio::task::spawn_blocking(move || {
        // libvirt would print every error to stderr, across the progress bars.
        virt::error::clear_error_callback();
        Connect::open(Some(&address)).map_err(Failure::from)
    });
    match tokio::time::timeout(CONNECT_DEADLINE, open).await {
        Ok(Ok(opened)) => opened,
        Ok(Err(_)) => Err(Failure::Panicked),
        Err(_) => Err(silent(uri, CONNECT_DEADLINE)),
    }
}

fn silent(uri: &str, limit: Duration) -> Failure {
    Failure::Silent {
        uri: uri.to_owned(),
        seconds: limit.as_secs(),
    }
}

/// Asked only after a failure.
fn is_lost(conn: &Connect) -> bool {
    !conn.is_alive().unwrap_or(false)
}

/// Turns "there is no such object" into `None`.
fn absent_as_none<T>(
    result: Result<T, virt::error::Error>,
    absent: ErrorNumber,
) -> Result<Option<T>, virt::error::Error> {
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
        assert!(super::kvm_works_here(
            "processor : 0\nflags : fpu svm sse\n"
        ));
        assert!(!super::kvm_works_here(
            "processor : 0\nflags : fpu sse\nmodel name : svm\n"
        ));
    }
}
