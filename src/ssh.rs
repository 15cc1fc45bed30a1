//! The SSH room, the only user of `ssh2`: one blocking session per guest, its host key pinned, every wait with a
//! deadline. Commands end with a trailer line that carries their exit status, since a lost connection and a killed
//! command look like success to the protocol library.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream, ToSocketAddrs};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ssh2::{CheckResult, ExtendedData, KnownHostFileKind, MethodType};
use tokio::io::AsyncReadExt;

use crate::error::{Context, Error, Result};
use crate::keys;
use crate::template::shell_quote;

/// Whom to trust at the other end.
#[derive(Debug, Clone)]
pub enum Trust {
    /// Exactly this public key.
    Pinned(String),
    /// Whatever the user's known_hosts says.
    KnownHosts(PathBuf),
}

/// How to log in.
#[derive(Clone)]
pub enum Identity {
    /// A private key in OpenSSH's form, with its public half.
    Key { private: String, public: String },
    /// The agent, then the usual keys in `~/.ssh`.
    Own { dir: PathBuf },
}

#[derive(Clone)]
pub struct Target {
    pub host: String,
    pub port: u16,
    pub user: String,
    pub trust: Trust,
    pub identity: Identity,
}

impl Target {
    /// What a person types to get there.
    pub fn command(&self) -> String {
        let port = if self.port == 22 { String::new() } else { format!("-p {} ", self.port) };
        format!("ssh {port}{}@{}", self.user, self.host)
    }
}

/// Why no session came about.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Nothing there yet, or it went away: worth another try.
    #[error(transparent)]
    Unreachable(Error),
    #[error("the guest at {host} shows the host key {shown}, not {expected}")]
    WrongHostKey { host: String, expected: String, shown: String },
    #[error("{user}@{host} refused the key {key}")]
    Refused { user: String, host: String, key: String },
}

/// A session that is opened when it is first asked for, and anew when it broke.
#[derive(Default)]
pub struct Kept(Mutex<Option<Session>>);

impl Kept {
    pub fn of(session: Session) -> Self {
        Self(Mutex::new(Some(session)))
    }

    /// `target` is only asked for where a session has to be opened.
    pub async fn session(&self, target: impl Future<Output = Result<Target, OpenError>>, deadline: Duration) -> Result<Session, OpenError> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(session) = kept
            && session.works().await
        {
            return Ok(session);
        }
        let session = Session::open(target.await?, deadline).await?;
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(session.clone());
        Ok(session)
    }
}

/// What a command left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    Status(i32),
    /// Killed by its deadline in the guest.
    TimedOut,
    /// The connection broke before the command's end was seen.
    Lost(String),
}

/// An authenticated session. Cheap to clone; one command at a time.
#[derive(Clone)]
pub struct Session {
    inner: Arc<Mutex<ssh2::Session>>,
    stream: Arc<TcpStream>,
    root: bool,
}

const TRAILER: &str = "nodegraft-exit:";
/// `timeout` in the guest exits so when it had to kill.
const TIMED_OUT: [i32; 2] = [124, 137];
/// How much longer than the guest's own deadline we listen.
const GRACE: Duration = Duration::from_secs(15);

/// Reads the SSH banner at an address, as a sign of life.
pub async fn banner(address: SocketAddr, deadline: Duration) -> Result<String> {
    let attempt = async {
        let mut stream = tokio::net::TcpStream::connect(address).await.doing(format!("connecting to {address}"))?;
        let mut buffer = [0_u8; 64];
        let read = stream.read(&mut buffer).await.doing(format!("reading the SSH banner of {address}"))?;
        let text = String::from_utf8_lossy(&buffer[..read]).trim().to_owned();
        if text.starts_with("SSH-") { Ok(text) } else { Err(Error::new(format!("{address} answers, but not as an SSH server"))) }
    };
    tokio::time::timeout(deadline, attempt).await.unwrap_or_else(|_| Err(Error::new(format!("nothing answers at {address}"))))
}

impl Session {
    /// Connects, checks the host key and logs in, all within `deadline`.
    pub async fn open(target: Target, deadline: Duration) -> Result<Self, OpenError> {
        tokio::task::spawn_blocking(move || open(&target, deadline))
            .await
            .unwrap_or_else(|panic| Err(OpenError::Unreachable(Error::new("the SSH thread ended").because(panic))))
    }

    fn lock(&self) -> MutexGuard<'_, ssh2::Session> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a command still gets through.
    async fn works(&self) -> bool {
        self.output("true", Duration::from_secs(5)).await.is_ok()
    }

    /// Breaks the connection under whatever runs on it. The guest's command may go on.
    pub fn cut(&self) {
        let _ = self.stream.shutdown(Shutdown::Both);
    }

    /// Runs a shell command as root, feeding it `stdin`; `on_line` sees each line of its output as it comes.
    /// The guest itself kills the command at `deadline`.
    pub async fn run(
        &self,
        command: &str,
        stdin: Vec<u8>,
        deadline: Duration,
        on_line: impl FnMut(&str) + Send + 'static,
    ) -> Result<Ended> {
        let session = self.clone();
        let words = self.as_root(&format!("timeout -k 5 {} sh -c {}", deadline.as_secs().max(1), shell_quote(command)));
        tokio::task::spawn_blocking(move || session.run_blocking(&words, &stdin, deadline + GRACE, on_line))
            .await
            .doing("running a command over SSH")?
    }

    /// Runs a command that is expected to succeed, and returns what it printed.
    pub async fn output(&self, command: &str, deadline: Duration) -> Result<String> {
        let (sender, receiver) = std::sync::mpsc::channel();
        let ended = self
            .run(command, Vec::new(), deadline, move |line| {
                let _ = sender.send(line.to_owned());
            })
            .await?;
        let lines: Vec<String> = receiver.try_iter().collect();
        match ended {
            Ended::Status(0) => Ok(lines.join("\n")),
            Ended::Status(status) => Err(Error::new(format!("`{command}` ended with status {status}")).with_detail(lines)),
            Ended::TimedOut => Err(Error::new(format!("`{command}` did not end within {} s", deadline.as_secs())).with_detail(lines)),
            Ended::Lost(reason) => Err(Error::new(format!("the SSH connection broke during `{command}`")).because(Error::new(reason))),
        }
    }

    /// Writes a file, complete or not at all. `mode` is octal text such as `0600`.
    pub async fn write(&self, path: &str, bytes: Vec<u8>, mode: &str, deadline: Duration) -> Result<()> {
        let (quoted, part) = (shell_quote(path), shell_quote(&format!("{path}.part")));
        let command = format!("mkdir -p \"$(dirname {quoted})\" && umask 077 && cat > {part} && chmod {mode} {part} && mv {part} {quoted}");
        match self.run(&command, bytes, deadline, |_| {}).await? {
            Ended::Status(0) => Ok(()),
            other => Err(Error::new(format!("writing {path} in the guest failed: {}", other.describe()))),
        }
    }

    fn as_root(&self, command: &str) -> String {
        if self.root { command.to_owned() } else { format!("sudo -n {command}") }
    }

    fn run_blocking(&self, command: &str, stdin: &[u8], limit: Duration, mut on_line: impl FnMut(&str)) -> Result<Ended> {
        let session = self.lock();
        let until = Instant::now() + limit;
        let lost = |error: &dyn std::fmt::Display| Ok(Ended::Lost(error.to_string()));
        session.set_timeout(millis(Duration::from_secs(30).min(limit)));
        let mut channel = match session.channel_session() {
            Ok(channel) => channel,
            Err(error) => return lost(&error),
        };
        // One stream: reading only one of two that are full would wait for ever.
        if let Err(error) = channel
            .handle_extended_data(ExtendedData::Merge)
            .and_then(|()| channel.exec(&format!("{command} 2>&1; status=$?; echo; echo {TRAILER}$status")))
        {
            return lost(&error);
        }
        if let Err(error) = channel.write_all(stdin).and_then(|()| channel.flush()) {
            return lost(&error);
        }
        if let Err(error) = channel.send_eof() {
            return lost(&error);
        }
        let mut lines = Lines::default();
        let mut buffer = [0_u8; 16 << 10];
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(Ended::TimedOut);
            }
            session.set_timeout(millis(left.min(Duration::from_secs(5))));
            match channel.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => lines.feed(&buffer[..read], &mut on_line),
                Err(error) if error.kind() == std::io::ErrorKind::TimedOut => {}
                Err(error) => return lost(&error),
            }
        }
        session.set_timeout(millis(Duration::from_secs(10)));
        let _ = channel.wait_close();
        Ok(match lines.finish(&mut on_line) {
            Some(status) if TIMED_OUT.contains(&status) => Ended::TimedOut,
            Some(status) => Ended::Status(status),
            None => Ended::Lost("the connection closed before the command's end was seen".into()),
        })
    }
}

impl Ended {
    pub fn describe(&self) -> String {
        match self {
            Self::Status(status) => format!("exit status {status}"),
            Self::TimedOut => "killed at its deadline".into(),
            Self::Lost(reason) => format!("connection lost: {reason}"),
        }
    }
}

/// Splits output into lines and keeps the trailer back. An empty line is held, since one precedes the trailer.
#[derive(Default)]
struct Lines {
    partial: Vec<u8>,
    held_blank: bool,
    status: Option<i32>,
}

impl Lines {
    fn feed(&mut self, bytes: &[u8], on_line: &mut impl FnMut(&str)) {
        self.partial.extend_from_slice(bytes);
        while let Some(end) = self.partial.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.partial.drain(..=end).collect();
            self.line(&String::from_utf8_lossy(&line[..end]), on_line);
        }
    }

    fn line(&mut self, line: &str, on_line: &mut impl FnMut(&str)) {
        if let Some(status) = line.strip_prefix(TRAILER).and_then(|status| status.trim().parse().ok()) {
            self.status = Some(status);
            return;
        }
        if std::mem::take(&mut self.held_blank) {
            on_line("");
        }
        if line.is_empty() { self.held_blank = true } else { on_line(line.trim_end_matches('\r')) }
    }

    fn finish(mut self, on_line: &mut impl FnMut(&str)) -> Option<i32> {
        if !self.partial.is_empty() {
            let rest = std::mem::take(&mut self.partial);
            self.line(&String::from_utf8_lossy(&rest), on_line);
        }
        self.status
    }
}

fn open(target: &Target, deadline: Duration) -> Result<Session, OpenError> {
    let unreachable =
        |what: String, error: &dyn std::fmt::Display| OpenError::Unreachable(Error::new(what).because(Error::new(error.to_string())));
    let at = format!("{}:{}", target.host, target.port);
    let address = (target.host.as_str(), target.port)
        .to_socket_addrs()
        .map_err(|error| unreachable(format!("resolving {}", target.host), &error))?
        .next()
        .ok_or_else(|| OpenError::Unreachable(Error::new(format!("{} has no address", target.host))))?;
    let stream = TcpStream::connect_timeout(&address, deadline).map_err(|error| unreachable(format!("connecting to {at}"), &error))?;
    // Without it every command waits for a delayed acknowledgement.
    let _ = stream.set_nodelay(true);
    let ours = stream.try_clone().map_err(|error| unreachable(format!("connecting to {at}"), &error))?;
    let mut session = ssh2::Session::new().map_err(|error| unreachable("starting SSH".into(), &error))?;
    session.set_timeout(millis(deadline));
    session.set_tcp_stream(stream);
    if matches!(target.trust, Trust::Pinned(_)) {
        let _ = session.method_pref(MethodType::HostKey, "ssh-ed25519");
    }
    session.handshake().map_err(|error| unreachable(format!("shaking hands with {at}"), &error))?;
    check_host_key(&session, target)?;
    log_in(&session, target)?;
    Ok(Session { inner: Arc::new(Mutex::new(session)), stream: Arc::new(ours), root: target.user == "root" })
}

fn check_host_key(session: &ssh2::Session, target: &Target) -> Result<(), OpenError> {
    let (bytes, _) = session.host_key().ok_or_else(|| OpenError::Unreachable(Error::new("the server showed no host key")))?;
    let shown = keys::from_wire(bytes).map_err(OpenError::Unreachable)?;
    let wrong = |expected: String| OpenError::WrongHostKey { host: target.host.clone(), expected, shown: keys::fingerprint(&shown) };
    match &target.trust {
        Trust::Pinned(expected) if keys::same(expected, &shown) => Ok(()),
        Trust::Pinned(expected) => Err(wrong(keys::fingerprint(expected))),
        Trust::KnownHosts(path) => {
            let unreadable = |error: ssh2::Error| OpenError::Unreachable(Error::new(format!("reading {}", path.display())).because(error));
            let mut known = session.known_hosts().map_err(unreadable)?;
            known.read_file(path, KnownHostFileKind::OpenSSH).map_err(unreadable)?;
            match known.check_port(&target.host, target.port, bytes) {
                CheckResult::Match => Ok(()),
                CheckResult::NotFound => Err(wrong(format!("(none is recorded in {}: log in once by hand)", path.display()))),
                _ => Err(wrong(format!("the one recorded in {}", path.display()))),
            }
        }
    }
}

fn log_in(session: &ssh2::Session, target: &Target) -> Result<(), OpenError> {
    let refused = |key: String| OpenError::Refused { user: target.user.clone(), host: target.host.clone(), key };
    match &target.identity {
        Identity::Key { private, public } => match session.userauth_pubkey_memory(&target.user, Some(public), private, None) {
            Ok(()) => Ok(()),
            Err(error) if is_network(&error) => Err(OpenError::Unreachable(Error::new("logging in").because(error))),
            Err(_) => Err(refused(keys::fingerprint(public))),
        },
        Identity::Own { dir } => {
            if session.userauth_agent(&target.user).is_ok() {
                return Ok(());
            }
            for name in ["id_ed25519", "id_ecdsa", "id_rsa"] {
                let key = dir.join(name);
                if key.exists() && session.userauth_pubkey_file(&target.user, None, &key, None).is_ok() {
                    return Ok(());
                }
            }
            Err(refused(format!("of the agent and of {}", dir.display())))
        }
    }
}

/// A broken connection, as against a refusal.
fn is_network(error: &ssh2::Error) -> bool {
    const SOCKET_CODES: [i32; 5] = [-7, -9, -13, -30, -43];
    matches!(error.code(), ssh2::ErrorCode::Session(code) if SOCKET_CODES.contains(&code))
}

fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(chunks: &[&str]) -> (Vec<String>, Option<i32>) {
        let mut seen = Vec::new();
        let mut lines = Lines::default();
        let mut on_line = |line: &str| seen.push(line.to_owned());
        chunks.iter().for_each(|chunk| lines.feed(chunk.as_bytes(), &mut on_line));
        let status = lines.finish(&mut on_line);
        (seen, status)
    }

    #[test]
    fn the_trailer_is_the_status_and_not_output() {
        assert_eq!(split(&["a\nb", "c\n\nnodegraft-ex", "it:7\n"]), (vec!["a".into(), "bc".into()], Some(7)));
        assert_eq!(split(&["a\n\nb\n\nnodegraft-exit:0\n"]), (vec!["a".into(), String::new(), "b".into()], Some(0)));
    }

    #[test]
    fn without_a_trailer_there_is_no_status() {
        assert_eq!(split(&["a\nhalf a li"]), (vec!["a".into(), "half a li".into()], None));
    }
}
