//! The SSH room, the only user of `ssh2`: one blocking session per guest, its host key pinned, every wait with a
//! deadline. Commands end with a trailer line that carries their exit status, since a lost connection and a killed
//! command look like success to the protocol library. What a guest says leaves here as `plain` text; only `run` hands
//! out lines as they came.

mod error;

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream, ToSocketAddrs};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use socket2::{SockRef, TcpKeepalive};
use ssh2::{CheckResult, ExtendedData, KnownHostFileKind, MethodType};
use tokio::io::AsyncReadExt;

pub use self::error::{OpenError, Trouble};
use crate::core::digest::hex;
use crate::core::error::{Context, Error, Result};
use crate::core::template::shell_quote;
use crate::core::{plain, random};
use crate::rooms::keys;

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
        let port = if self.port == 22 {
            String::new()
        } else {
            format!("-p {} ", self.port)
        };
        format!("ssh {port}{}@{}", self.user, self.host)
    }
}

/// A session that is opened when it is first asked for, and anew when it broke.
#[derive(Default)]
pub struct Kept(Mutex<Option<Session>>);

impl Kept {
    pub fn of(session: Session) -> Self {
        Self(Mutex::new(Some(session)))
    }

    /// `target` is only asked for where a session has to be opened.
    pub async fn session(
        &self,
        target: impl Future<Output = Result<Target, OpenError>>,
        deadline: Duration,
    ) -> Result<Session, OpenError> {
        let kept = self
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
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
    /// By this signal, and not for its deadline.
    Killed(i32),
    /// Killed by its deadline in the guest.
    TimedOut,
    /// The connection broke before the command's end was seen.
    Lost(Trouble),
}

/// An authenticated session. Cheap to clone; one command at a time.
#[derive(Clone)]
pub struct Session {
    inner: Arc<Mutex<ssh2::Session>>,
    stream: Arc<TcpStream>,
    root: bool,
}

/// `timeout` in the guest exits so when it had to ask, and when it had to kill. So does what ran a `timeout` of its own,
/// or was killed by somebody else: only the time tells.
const TIMED_OUT: [i32; 2] = [124, 137];
/// A shell's exit status for a signal, without the signal's number.
const SIGNALLED: std::ops::RangeInclusive<i32> = 129..=159;
/// How much longer than the guest's own deadline we listen.
const GRACE: Duration = Duration::from_secs(15);
/// How long one session waits for another of its commands to end, beyond that command's own deadline.
const STUCK: Duration = Duration::from_secs(30);
/// Without a sign of life for so long, the kernel takes the other end for dead.
const DEAD: Duration = Duration::from_secs(90);
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// What a command that ended is given to close its output; one that left something behind in the guest never does.
const AFTER_TRAILER: Duration = Duration::from_secs(2);
/// A line longer than this is cut in pieces: a guest may send one without an end.
const LONGEST_LINE: usize = 64 << 10;
/// The longest first line of a server that is an SSH server, with its line end.
const LONGEST_BANNER: usize = 255;

/// Reads the SSH banner at an address, as a sign of life: its first line, as text.
pub async fn banner(address: SocketAddr, deadline: Duration) -> Result<String> {
    let attempt = async {
        let mut stream = tokio::net::TcpStream::connect(address)
            .await
            .map_err(|error| Trouble::from(&error))
            .doing(format!("connecting to {address}"))?;
        let mut said = Vec::new();
        let mut buffer = [0_u8; LONGEST_BANNER];
        while said.len() < LONGEST_BANNER && !said.contains(&b'\n') {
            match stream
                .read(&mut buffer)
                .await
                .map_err(|error| Trouble::from(&error))
                .doing(format!("reading the SSH banner of {address}"))?
            {
                0 => break,
                read => said.extend_from_slice(&buffer[..read]),
            }
        }
        // Binary packets follow at once, often in the same piece.
        let first = said.split(|byte| *byte == b'\n').next().unwrap_or_default();
        let text = plain::line(&String::from_utf8_lossy(first));
        if text.starts_with("SSH-") {
            Ok(text)
        } else {
            Err(Error::unfit(format!(
                "{address} answers, but not as an SSH server"
            )))
        }
    };
    tokio::time::timeout(deadline, attempt)
        .await
        .unwrap_or_else(|_| Err(Error::unfit(format!("nothing answers at {address}"))))
}

impl Session {
    /// Connects, checks the host key and logs in, all within `deadline`.
    pub async fn open(target: Target, deadline: Duration) -> Result<Self, OpenError> {
        let host = target.host.clone();
        let opened = tokio::task::spawn_blocking(move || open(&target, deadline));
        // The resolver of host names knows no deadline.
        tokio::time::timeout(deadline + Duration::from_secs(1), opened)
            .await
            .unwrap_or_else(|_| {
                Ok(Err(OpenError::Unreachable(Error::unfit(format!(
                    "no session with {host} within {} s",
                    deadline.as_secs()
                )))))
            })
            .unwrap_or_else(|_| {
                Err(OpenError::during(
                    format!("opening a session with {host}"),
                    Trouble::Panicked,
                ))
            })
    }

    fn lock(&self) -> MutexGuard<'_, ssh2::Session> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a command still gets through. A session that is busy, or silent, is given up.
    async fn works(&self) -> bool {
        let works = tokio::time::timeout(
            Duration::from_secs(8),
            self.output("true", Duration::from_secs(5)),
        )
        .await;
        let works = works.is_ok_and(|output| output.is_ok());
        if !works {
            self.cut();
        }
        works
    }

    /// Breaks the connection under whatever runs on it. The guest's command may go on.
    pub fn cut(&self) {
        let _ = self.stream.shutdown(Shutdown::Both);
    }

    /// Runs a shell command as root, feeding it `stdin`; `on_line` sees each line of its output as it comes.
    /// The guest itself kills the command at `deadline`. The lines are raw: [`plain::line`] is for a person.
    pub async fn run(
        &self,
        command: &str,
        stdin: impl AsRef<[u8]> + Send + 'static,
        deadline: Duration,
        on_line: impl FnMut(&str) + Send + 'static,
    ) -> Result<Ended> {
        let session = self.clone();
        let words = self.as_root(&format!(
            "timeout -k 5 {} sh -c {}",
            deadline.as_secs().max(1),
            shell_quote(command)
        ));
        let trailer = trailer()?;
        let run = tokio::task::spawn_blocking(move || {
            session.run_blocking(&words, stdin.as_ref(), deadline, &trailer, on_line)
        });
        match tokio::time::timeout(deadline + GRACE + STUCK, run).await {
            Ok(ended) => ended
                .map_err(|_| Trouble::Panicked)
                .doing("running a command over SSH"),
            Err(_) => {
                self.cut();
                Ok(Ended::Lost(Trouble::Occupied))
            }
        }
    }

    /// Runs a command that is expected to succeed, and returns what it printed, as plain text.
    pub async fn output(&self, command: &str, deadline: Duration) -> Result<String> {
        let (sender, receiver) = std::sync::mpsc::channel();
        let ended = self
            .run(command, Vec::new(), deadline, move |line| {
                let _ = sender.send(plain::line(line));
            })
            .await?;
        let lines: Vec<String> = receiver.try_iter().collect();
        match ended {
            Ended::Status(0) => Ok(lines.join("\n")),
            lost @ Ended::Lost(_) => Err(lost.error(command, deadline.as_secs())),
            failed => Err(failed.error(command, deadline.as_secs()).with_detail(lines)),
        }
    }

    /// Writes a file, complete or not at all. `mode` is octal text such as `0600`.
    pub async fn write(
        &self,
        path: &str,
        bytes: impl AsRef<[u8]> + Send + 'static,
        mode: &str,
        deadline: Duration,
    ) -> Result<()> {
        let (quoted, part) = (
            shell_quote(path),
            shell_quote(&format!("{path}.{}.part", random_word()?)),
        );
        // A connection that breaks looks like the end of the file to `cat`.
        let command = format!(
            "mkdir -p \"$(dirname {quoted})\" && umask 077 && cat > {part} && [ \"$(wc -c < {part})\" -eq {} ] && chmod {mode} {part} && \
             mv -f {part} {quoted} || {{ rm -f {part}; exit 1; }}",
            bytes.as_ref().len()
        );
        let said = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&said);
        let on_line = move |line: &str| {
            heard
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(plain::line(line))
        };
        match self.run(&command, bytes, deadline, on_line).await? {
            Ended::Status(0) => Ok(()),
            other => Err(Error::unfit(format!(
                "writing {path} in the guest failed: {}",
                other.describe()
            ))
            .with_detail(std::mem::take(
                &mut *said.lock().unwrap_or_else(PoisonError::into_inner),
            ))),
        }
    }

    fn as_root(&self, command: &str) -> String {
        if self.root {
            command.to_owned()
        } else {
            format!("sudo -n {command}")
        }
    }

    fn run_blocking(
        &self,
        command: &str,
        stdin: &[u8],
        deadline: Duration,
        trailer: &str,
        mut on_line: impl FnMut(&str),
    ) -> Ended {
        let session = self.lock();
        let begun = Instant::now();
        let until = begun + deadline + GRACE;
        let patience = || {
            session.set_timeout(millis(
                Duration::from_secs(30).min(until.saturating_duration_since(Instant::now())),
            ))
        };
        patience();
        let mut channel = match session.channel_session() {
            Ok(channel) => channel,
            Err(error) => return Ended::Lost(Trouble::from(&error)),
        };
        // One stream: reading only one of two that are full would wait for ever.
        if let Err(error) = channel
            .handle_extended_data(ExtendedData::Merge)
            .and_then(|()| {
                channel.exec(&format!(
                    "{command} 2>&1; status=$?; echo; echo {trailer}$status"
                ))
            })
        {
            return Ended::Lost(Trouble::from(&error));
        }
        for piece in stdin.chunks(256 << 10) {
            if Instant::now() > until {
                return Ended::TimedOut;
            }
            patience();
            if let Err(error) = channel.write_all(piece) {
                return Ended::Lost(broken(&session, &error));
            }
        }
        if let Err(error) = channel.send_eof() {
            return Ended::Lost(Trouble::from(&error));
        }
        let mut lines = Lines {
            trailer,
            ..Lines::default()
        };
        let mut buffer = [0_u8; 16 << 10];
        // What a command leaves behind may keep the channel open: the trailer is its end.
        while lines.status.is_none() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ended::TimedOut;
            }
            session.set_timeout(millis(left.min(Duration::from_secs(5))));
            match channel.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => lines.feed(&buffer[..read], &mut on_line),
                // Silence is no fault; a message that cannot be sent is.
                Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                    if let Err(error) = session.keepalive_send() {
                        return Ended::Lost(Trouble::from(&error));
                    }
                }
                Err(error) => return Ended::Lost(broken(&session, &error)),
            }
        }
        // Its own end follows at once, and a server that is cut off before it may close the whole connection.
        session.set_timeout(millis(AFTER_TRAILER));
        let patient_until = Instant::now() + AFTER_TRAILER;
        while !channel.eof()
            && Instant::now() < patient_until
            && channel.read(&mut buffer).is_ok_and(|read| read > 0)
        {}
        let ended = channel.eof();
        session.set_timeout(millis(Duration::from_secs(10)));
        let status = lines.finish(&mut on_line);
        let _ = if ended {
            channel.wait_close()
        } else {
            channel.close()
        };
        match status {
            Some(status) => Ended::of(
                status,
                begun.elapsed().as_secs() >= deadline.as_secs().max(1),
            ),
            None => Ended::Lost(Trouble::NoEnd),
        }
    }
}

/// The word that ends a command's output; nothing that it prints can be mistaken for it.
fn trailer() -> Result<String> {
    Ok(format!("nodegraft-exit-{}:", random_word()?))
}

/// Eight hex digits that nobody else has.
pub fn random_word() -> Result<String> {
    let mut bytes = [0_u8; 4];
    random::fill(&mut bytes)?;
    Ok(hex(&bytes))
}

impl Ended {
    /// `late`: its deadline was over.
    fn of(status: i32, late: bool) -> Self {
        match status {
            status if late && TIMED_OUT.contains(&status) => Self::TimedOut,
            status if SIGNALLED.contains(&status) => Self::Killed(status - SIGNALLED.start() + 1),
            status => Self::Status(status),
        }
    }
}

/// A signal, as people know it.
pub fn name(signal: i32) -> String {
    const NAMES: [(i32, &str); 9] = [
        (1, "SIGHUP"),
        (2, "SIGINT"),
        (3, "SIGQUIT"),
        (4, "SIGILL"),
        (6, "SIGABRT"),
        (9, "SIGKILL"),
        (11, "SIGSEGV"),
        (13, "SIGPIPE"),
        (15, "SIGTERM"),
    ];
    NAMES
        .iter()
        .find(|(number, _)| *number == signal)
        .map_or_else(
            || format!("signal {signal}"),
            |(_, name)| (*name).to_owned(),
        )
}

/// Splits output into lines and keeps the trailer back. An empty line is held, since one precedes the trailer.
#[derive(Default)]
struct Lines<'a> {
    trailer: &'a str,
    partial: Vec<u8>,
    held_blank: bool,
    status: Option<i32>,
}

impl Lines<'_> {
    fn feed(&mut self, bytes: &[u8], on_line: &mut impl FnMut(&str)) {
        self.partial.extend_from_slice(bytes);
        while let Some(end) = self.partial.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.partial.drain(..=end).collect();
            self.line(&String::from_utf8_lossy(&line[..end]), on_line);
        }
        if self.partial.len() > LONGEST_LINE {
            let piece = std::mem::take(&mut self.partial);
            self.line(&String::from_utf8_lossy(&piece), on_line);
        }
    }

    fn line(&mut self, line: &str, on_line: &mut impl FnMut(&str)) {
        if let Some(status) = line
            .strip_prefix(self.trailer)
            .and_then(|status| status.trim().parse().ok())
        {
            self.status = Some(status);
            return;
        }
        if std::mem::take(&mut self.held_blank) {
            on_line("");
        }
        if line.is_empty() {
            self.held_blank = true
        } else {
            on_line(line.trim_end_matches('\r'))
        }
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
    let until = Instant::now() + deadline;
    let left = || {
        until
            .saturating_duration_since(Instant::now())
            .max(Duration::from_millis(1))
    };
    let at = format!("{}:{}", target.host, target.port);
    let connecting = format!("connecting to {at}");
    let stream =
        connect(target, left).map_err(|trouble| OpenError::during(connecting.as_str(), trouble))?;
    let ours = stream
        .try_clone()
        .map_err(|error| OpenError::during(connecting.as_str(), &error))?;
    let mut session =
        ssh2::Session::new().map_err(|error| OpenError::during("starting SSH", &error))?;
    session.set_timeout(millis(left()));
    session.set_tcp_stream(stream);
    if matches!(target.trust, Trust::Pinned(_)) {
        let _ = session.method_pref(MethodType::HostKey, "ssh-ed25519");
    }
    session
        .handshake()
        .map_err(|error| OpenError::during(format!("shaking hands with {at}"), &error))?;
    check_host_key(&session, target)?;
    session.set_timeout(millis(left()));
    log_in(&session, target)?;
    session.set_keepalive(
        true,
        u32::try_from(KEEP_ALIVE.as_secs()).unwrap_or(u32::MAX),
    );
    Ok(Session {
        inner: Arc::new(Mutex::new(session)),
        stream: Arc::new(ours),
        root: target.user == "root",
    })
}

/// To the first of the host's addresses that answers. A peer that dies is noticed, whether we send or only listen.
fn connect(target: &Target, left: impl Fn() -> Duration) -> Result<TcpStream, Trouble> {
    let mut last = Trouble::UnknownName;
    for address in resolve(&target.host, target.port)? {
        match TcpStream::connect_timeout(&address, left()) {
            Ok(stream) => {
                // Without it every command waits for a delayed acknowledgement.
                let _ = stream.set_nodelay(true);
                let socket = SockRef::from(&stream);
                let _ = socket.set_tcp_keepalive(
                    &TcpKeepalive::new()
                        .with_time(KEEP_ALIVE)
                        .with_interval(KEEP_ALIVE)
                        .with_retries(5),
                );
                let _ = socket.set_tcp_user_timeout(Some(DEAD));
                return Ok(stream);
            }
            Err(error) => last = Trouble::from(&error),
        }
    }
    Err(last)
}

/// At least one address. The system gives no reason for none that could be told from another.
pub fn resolve(host: &str, port: u16) -> Result<Vec<SocketAddr>, Trouble> {
    (host, port)
        .to_socket_addrs()
        .ok()
        .map(Iterator::collect)
        .filter(|addresses: &Vec<_>| !addresses.is_empty())
        .ok_or(Trouble::UnknownName)
}

/// Why a channel cannot be read or written. Its error has lost the number, which the session still knows.
fn broken(session: &ssh2::Session, error: &io::Error) -> Trouble {
    match ssh2::Error::last_session_error(session) {
        Some(last) => Trouble::from(&last),
        None => Trouble::from(error),
    }
}

fn check_host_key(session: &ssh2::Session, target: &Target) -> Result<(), OpenError> {
    let (bytes, _) = session
        .host_key()
        .ok_or_else(|| OpenError::during("checking the host key", Trouble::NoHostKey))?;
    let shown = keys::from_wire(bytes)
        .doing("checking the host key")
        .map_err(OpenError::Unreachable)?;
    let wrong = |expected: String| OpenError::WrongHostKey {
        host: target.host.clone(),
        expected,
        shown: keys::fingerprint(&shown),
    };
    match &target.trust {
        Trust::Pinned(expected) if keys::same(expected, &shown) => Ok(()),
        Trust::Pinned(expected) => Err(wrong(keys::fingerprint(expected))),
        Trust::KnownHosts(path) => {
            let unreadable = |error: ssh2::Error| {
                OpenError::during(format!("reading {}", path.display()), &error)
            };
            let mut known = session.known_hosts().map_err(unreadable)?;
            known
                .read_file(path, KnownHostFileKind::OpenSSH)
                .map_err(unreadable)?;
            match known.check_port(&target.host, target.port, bytes) {
                CheckResult::Match => Ok(()),
                CheckResult::NotFound => Err(wrong(format!(
                    "(none is recorded in {}: log in once by hand)",
                    path.display()
                ))),
                _ => Err(wrong(format!("the one recorded in {}", path.display()))),
            }
        }
    }
}

fn log_in(session: &ssh2::Session, target: &Target) -> Result<(), OpenError> {
    let refused = |key: String| OpenError::Refused {
        user: target.user.clone(),
        host: target.host.clone(),
        key,
    };
    match &target.identity {
        Identity::Key { private, public } => {
            match session.userauth_pubkey_memory(&target.user, Some(public), private, None) {
                Ok(()) => Ok(()),
                Err(error) => Err(match Trouble::from(&error) {
                    trouble if trouble.is_network() => OpenError::during("logging in", trouble),
                    why if why.is_key() => OpenError::UnusableKey {
                        public: keys::fingerprint(public),
                        why,
                    },
                    _ => refused(keys::fingerprint(public)),
                }),
            }
        }
        Identity::Own { dir } => {
            let mut tried = Vec::new();
            let Err(error) = session.userauth_agent(&target.user) else {
                return Ok(());
            };
            tried.push(format!(
                "the agent ({})",
                if Trouble::from(&error) == Trouble::LoginRefused {
                    "it holds none that is let in"
                } else {
                    "there is none"
                }
            ));
            for name in ["id_ed25519", "id_ecdsa", "id_rsa"] {
                let key = dir.join(name);
                if !key.exists() {
                    continue;
                }
                match session.userauth_pubkey_file(&target.user, None, &key, None) {
                    Ok(()) => return Ok(()),
                    Err(error) => match Trouble::from(&error) {
                        trouble if trouble.is_network() => {
                            return Err(OpenError::during("logging in", trouble));
                        }
                        trouble => tried.push(format!("{} ({trouble})", key.display())),
                    },
                }
            }
            Err(refused(format!("of {}", tried.join(", of "))))
        }
    }
}

fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis())
        .unwrap_or(u32::MAX)
        .max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(chunks: &[&str]) -> (Vec<String>, Option<i32>) {
        let mut seen = Vec::new();
        let mut lines = Lines {
            trailer: "nodegraft-exit-1a:",
            ..Lines::default()
        };
        let mut on_line = |line: &str| seen.push(line.to_owned());
        chunks
            .iter()
            .for_each(|chunk| lines.feed(chunk.as_bytes(), &mut on_line));
        let status = lines.finish(&mut on_line);
        (seen, status)
    }

    #[test]
    fn the_trailer_is_the_status_and_not_output() {
        assert_eq!(
            split(&["a\nb", "c\n\nnodegraft-ex", "it-1a:7\n"]),
            (vec!["a".into(), "bc".into()], Some(7))
        );
        assert_eq!(
            split(&["a\n\nb\n\nnodegraft-exit-1a:0\n"]),
            (vec!["a".into(), String::new(), "b".into()], Some(0))
        );
        assert_eq!(
            split(&["nodegraft-exit-1b:0\n"]),
            (vec!["nodegraft-exit-1b:0".into()], None),
            "that of another command"
        );
        assert_ne!(trailer().unwrap(), trailer().unwrap());
    }

    #[test]
    fn a_line_without_an_end_does_not_fill_the_memory() {
        let long = "x".repeat(LONGEST_LINE + 1);
        let (seen, status) = split(&[&long, "rest\n\nnodegraft-exit-1a:0\n"]);
        assert_eq!((seen, status), (vec![long, "rest".into()], Some(0)));
    }

    #[test]
    fn only_the_time_tells_a_deadline_from_a_kill() {
        for (status, late, ended) in [
            (0, true, Ended::Status(0)),
            (124, true, Ended::TimedOut),
            (124, false, Ended::Status(124)),
            (137, true, Ended::TimedOut),
            (137, false, Ended::Killed(9)),
            (143, false, Ended::Killed(15)),
            (128, false, Ended::Status(128)),
            (255, false, Ended::Status(255)),
        ] {
            assert_eq!(Ended::of(status, late), ended, "{status}, late: {late}");
        }
    }

    #[tokio::test]
    async fn of_a_banner_only_the_first_line_is_taken_as_text() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for sent in [
                &b"SSH-2.0-drop\x1b[31mbear\r\n\0\0\x01\xff\x1b]0;title\x07"[..],
                b"HTTP/1.1 400\r\n\r\n",
            ] {
                listener.accept().unwrap().0.write_all(sent).unwrap();
            }
        });
        assert_eq!(
            banner(address, Duration::from_secs(5)).await.unwrap(),
            "SSH-2.0-dropbear"
        );
        assert!(
            banner(address, Duration::from_secs(5))
                .await
                .unwrap_err()
                .to_string()
                .contains("not as an SSH server")
        );
    }

    #[test]
    fn without_a_trailer_there_is_no_status() {
        assert_eq!(
            split(&["a\nhalf a li"]),
            (vec!["a".into(), "half a li".into()], None)
        );
    }
}
