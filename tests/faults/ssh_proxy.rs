//! Faults of SSH: a TCP proxy in the way to one guest. The lab's network namespace redirects what goes to the guest's
//! port 22; the proxy itself speaks from another address of the bridge, which is not redirected. A packet is what one
//! read gives: with TCP_NODELAY, mostly one of SSH's own.

use std::net::SocketAddr;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::Notify;

use crate::in_lab::text;

/// The proxy's own address, of those that the lab's bridge has.
const SOURCE: &str = "192.168.3.101";

#[derive(Clone, Copy)]
pub enum Wire {
    /// Passes everything: counts.
    Whole,
    /// Both ends are closed at the n-th packet, which is lost. Later connections pass.
    CutAt(u64),
    /// The connection that has the n-th packet says nothing any more, and stays open. Later connections pass.
    StallAt(u64),
    /// Each packet comes this much later.
    Slow(Duration),
}

pub struct SshProxy {
    packets: Arc<AtomicU64>,
    rule: Vec<String>,
    /// Locked while it changes: true once the rule is there, and `None` once it must not come any more.
    stands: Arc<Mutex<Option<bool>>>,
    _runtime: Runtime,
}

impl SshProxy {
    /// Stands before the guest at `ip` from its first answer on, until dropped. Not sooner: an address at which something
    /// listens is not free.
    pub fn before(ip: &str, wire: Wire) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let listener = runtime.block_on(TcpListener::bind("0.0.0.0:0")).unwrap();
        let port = listener.local_addr().unwrap().port();
        let packets = Arc::new(AtomicU64::new(0));
        let guest: SocketAddr = format!("{ip}:22").parse().unwrap();
        let counter = Arc::clone(&packets);
        runtime.spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(carry(client, guest, wire, Arc::clone(&counter)));
            }
        });
        let rule =
            format!("OUTPUT -p tcp -d {ip} --dport 22 ! -s {SOURCE} -j REDIRECT --to-ports {port}");
        let rule: Vec<String> = rule.split(' ').map(str::to_owned).collect();
        let stands = Arc::new(Mutex::new(Some(false)));
        runtime.spawn(stand(guest, rule.clone(), Arc::clone(&stands)));
        Self {
            packets,
            rule,
            stands,
            _runtime: runtime,
        }
    }

    /// How many packets passed, both ways together.
    pub fn packets(&self) -> u64 {
        self.packets.load(Ordering::SeqCst)
    }
}

impl Drop for SshProxy {
    fn drop(&mut self) {
        if self.stands.lock().unwrap().take() == Some(true) {
            iptables("-D", &self.rule);
        }
    }
}

/// Redirects as soon as the guest answers.
async fn stand(guest: SocketAddr, rule: Vec<String>, stands: Arc<Mutex<Option<bool>>>) {
    while reach(guest, Duration::from_millis(300)).await.is_none() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let mut stands = stands.lock().unwrap();
    if stands.is_some() {
        iptables("-A", &rule);
        *stands = Some(true);
    }
}

async fn reach(guest: SocketAddr, deadline: Duration) -> Option<TcpStream> {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(format!("{SOURCE}:0").parse().unwrap()).unwrap();
    tokio::time::timeout(deadline, socket.connect(guest))
        .await
        .ok()?
        .ok()
}

fn iptables(action: &str, rule: &[String]) {
    let output = Command::new("iptables")
        .args(["-w", "-t", "nat", action])
        .args(rule)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "iptables {action} {rule:?}: {}",
        text(&output)
    );
}

async fn carry(client: TcpStream, guest: SocketAddr, wire: Wire, packets: Arc<AtomicU64>) {
    // The guest is gone again: so is the client's connection.
    let Some(server) = reach(guest, Duration::from_secs(3)).await else {
        return;
    };
    client.set_nodelay(true).unwrap();
    server.set_nodelay(true).unwrap();
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let end = Arc::new(Notify::new());
    let one_way =
        |from, to| tokio::spawn(pass(from, to, wire, Arc::clone(&packets), Arc::clone(&end)));
    let ways = [
        one_way(from_client, to_server),
        one_way(from_server, to_client),
    ];
    for way in ways {
        let _ = way.await;
    }
}

/// One direction. Both end as soon as one does, except that one end's last words are carried.
async fn pass(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    wire: Wire,
    packets: Arc<AtomicU64>,
    end: Arc<Notify>,
) {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let read = tokio::select! {
            read = from.read(&mut buffer) => read.unwrap_or(0),
            () = end.notified() => return,
        };
        if read == 0 {
            let _ = to.shutdown().await;
            return;
        }
        let number = packets.fetch_add(1, Ordering::SeqCst) + 1;
        match wire {
            Wire::CutAt(at) if number == at => {
                end.notify_waiters();
                return;
            }
            Wire::StallAt(at) if number == at => std::future::pending().await,
            Wire::Slow(delay) => tokio::time::sleep(delay).await,
            _ => {}
        }
        if to.write_all(&buffer[..read]).await.is_err() {
            end.notify_waiters();
            return;
        }
    }
}
