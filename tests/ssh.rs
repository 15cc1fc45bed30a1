//! The SSH room and the runner of steps, on loopback with a real sshd.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nodegraft::rooms::keys;
use nodegraft::rooms::ssh::{Ended, Identity, OpenError, Session, Target, Trust};
use tempfile::TempDir;

const SHORT: Duration = Duration::from_secs(10);

/// A server of this test's own, ended when dropped.
pub struct Server {
    pub dir: TempDir,
    sshd: Child,
    pub target: Target,
}

impl Server {
    fn new() -> Self {
        Self::with(|_| Vec::new())
    }

    /// With options of its own, which may name files in the server's directory.
    pub fn with(more: impl FnOnce(&Path) -> Vec<String>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (host, own) = (
            keys::generate("host").unwrap(),
            keys::generate("own").unwrap(),
        );
        let private = dir.path().join("host_key");
        fs::write(&private, host.private.unwrap()).unwrap();
        fs::set_permissions(
            &private,
            std::os::unix::fs::PermissionsExt::from_mode(0o600),
        )
        .unwrap();
        fs::write(
            dir.path().join("authorized_keys"),
            format!("{}\n", own.public),
        )
        .unwrap();
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        // Root's sshd wants its directory to be there.
        let _ = fs::create_dir_all("/run/sshd");
        let options = [
            format!("HostKey={}", private.display()),
            format!(
                "AuthorizedKeysFile={}",
                dir.path().join("authorized_keys").display()
            ),
            format!("ListenAddress=127.0.0.1:{port}"),
            "StrictModes=no".into(),
            "UsePAM=no".into(),
            "PidFile=none".into(),
            "PermitRootLogin=yes".into(),
        ];
        let mut sshd = Command::new("/usr/sbin/sshd");
        sshd.args(["-D", "-f", "/dev/null"]);
        for option in options.iter().chain(&more(dir.path())) {
            sshd.args(["-o", option]);
        }
        let sshd = sshd
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("openssh-server is installed");
        let user = String::from_utf8(Command::new("id").arg("-un").output().unwrap().stdout)
            .unwrap()
            .trim()
            .to_owned();
        let target = Target {
            host: "127.0.0.1".into(),
            port,
            user,
            trust: Trust::Pinned(host.public),
            identity: Identity::Key {
                private: own.private.unwrap(),
                public: own.public,
            },
        };
        eventually("sshd to listen", || {
            TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        Self { dir, sshd, target }
    }

    pub async fn session(&self) -> Session {
        Session::open(self.target.clone(), SHORT).await.unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.sshd.kill();
        let _ = self.sshd.wait();
    }
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(
            begun.elapsed() < Duration::from_secs(20),
            "waited 20 s for {what}"
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}

async fn ended(session: &Session, command: &str, seconds: u64) -> (Ended, Vec<String>) {
    let lines = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&lines);
    let on_line = move |line: &str| seen.lock().unwrap().push(line.to_owned());
    let ended = session
        .run(command, Vec::new(), Duration::from_secs(seconds), on_line)
        .await
        .unwrap();
    let lines = lines.lock().unwrap().clone();
    (ended, lines)
}

/// Commands are root's; others would need a `sudo` that asks nothing.
fn is_root() -> bool {
    let root = fs::metadata("/proc/self")
        .is_ok_and(|found| std::os::unix::fs::MetadataExt::uid(&found) == 0);
    if !root {
        eprintln!("skipped: needs root");
    }
    root
}

#[tokio::test(flavor = "multi_thread")]
async fn how_a_command_ended_is_told() {
    if !is_root() {
        return;
    }
    let server = Server::new();
    let session = server.session().await;
    assert_eq!(
        ended(&session, "echo a; echo b >&2; exit 7", 5).await,
        (Ended::Status(7), vec!["a".into(), "b".into()])
    );
    assert_eq!(
        ended(&session, "kill -KILL $$", 5).await.0,
        Ended::Killed(9)
    );
    assert_eq!(
        ended(&session, "timeout 0.1 sleep 5", 5).await.0,
        Ended::Status(124)
    );
    assert_eq!(ended(&session, "sleep 60", 1).await.0, Ended::TimedOut);
    // What it leaves behind holds its output open, and holds up nobody.
    let begun = Instant::now();
    assert_eq!(
        ended(&session, "sleep 8 & echo done", 5).await,
        (Ended::Status(0), vec!["done".into()])
    );
    assert!(
        begun.elapsed() < Duration::from_secs(4),
        "it took {} s",
        begun.elapsed().as_secs()
    );
    assert_eq!(
        session
            .output("printf 'a\\033[31mb\\007\\n'", SHORT)
            .await
            .unwrap(),
        "ab"
    );
    let failed = session.output("echo why; exit 3", SHORT).await.unwrap_err();
    assert!(failed.to_string().ends_with("ended with status 3") && failed.detail() == ["why"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_is_written_whole_or_not_at_all() {
    if !is_root() {
        return;
    }
    let server = Server::new();
    let session = server.session().await;
    let path = server.dir.path().join("deep/file");
    let bytes: Arc<[u8]> = vec![7; 3 << 20].into();
    session
        .write(path.to_str().unwrap(), Arc::clone(&bytes), "0750", SHORT)
        .await
        .unwrap();
    assert_eq!(fs::read(&path).unwrap(), &*bytes);
    assert_eq!(
        std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&path).unwrap().permissions())
            & 0o777,
        0o750
    );
    // The connection breaks in the middle: for the other end that looks like the end of the file.
    let large: Arc<[u8]> = vec![8; 200 << 20].into();
    let (again, to) = (session.clone(), path.display().to_string());
    let writing = tokio::spawn(async move {
        again
            .write(&to, large, "0750", Duration::from_secs(60))
            .await
    });
    let parts = || fs::read_dir(path.parent().unwrap()).unwrap().count();
    eventually("the upload to begin", || parts() == 2);
    session.cut();
    let failed = writing.await.unwrap().unwrap_err();
    assert!(failed.to_string().contains("connection lost"), "{failed}");
    eventually("the rest to be gone", || parts() == 1);
    assert_eq!(fs::read(&path).unwrap(), &*bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_not_let_in_is_told_why() {
    let server = Server::new();
    let other = keys::generate("other").unwrap();
    let mut target = server.target.clone();
    target.identity = Identity::Key {
        private: other.private.unwrap(),
        public: other.public,
    };
    assert!(matches!(
        Session::open(target, SHORT).await,
        Err(OpenError::Refused { .. })
    ));
    let mut target = server.target.clone();
    target.trust = Trust::Pinned(keys::generate("other").unwrap().public);
    assert!(matches!(
        Session::open(target, SHORT).await,
        Err(OpenError::WrongHostKey { .. })
    ));
    let mut target = server.target.clone();
    let Identity::Key { public, .. } = &server.target.identity else {
        unreachable!()
    };
    target.identity = Identity::Key {
        private: "no key at all".into(),
        public: public.clone(),
    };
    let error = Session::open(target, SHORT)
        .await
        .err()
        .unwrap()
        .to_string();
    assert!(
        error.contains(
            "cannot be used: it does not sign: it is encrypted with a passphrase, of a form"
        ),
        "{error}"
    );
    // One that listens and says nothing is given up at the deadline, not later.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut target = server.target.clone();
    target.port = silent.local_addr().unwrap().port();
    let begun = Instant::now();
    let error = Session::open(target, Duration::from_secs(1))
        .await
        .err()
        .unwrap();
    assert!(matches!(error, OpenError::Unreachable(_)) && begun.elapsed() < Duration::from_secs(3));
}

/// The runner below a real server: a connection that is cut leaves an orphan, and one that holds is respected.
#[tokio::test(flavor = "multi_thread")]
async fn a_step_knows_whether_its_connection_lives() {
    if !is_root() {
        return;
    }
    let server = Server::new();
    let dir = server.dir.path().display().to_string();
    fs::write(
        server.dir.path().join("run-step.sh"),
        include_str!("../templates/steps/run-step.sh"),
    )
    .unwrap();
    fs::write(
        server.dir.path().join("1-work.sh"),
        format!("echo $$ >{dir}/shell\nsleep 300\n"),
    )
    .unwrap();
    fs::write(server.dir.path().join("2-next.sh"), "echo went\n").unwrap();
    let run = |name: &str, run: &str, seconds: u32| {
        format!(
            "sh {dir}/run-step.sh run {name} {dir}/{name}.sh d1 {run} {seconds} '{run}@here, nodegraft process 1'"
        )
    };
    let (first, second) = (server.session().await, server.session().await);
    let (step, works) = (first.clone(), run("1-work", "r1", 60));
    let working = tokio::spawn(async move { ended(&step, &works, 120).await });
    let shell = server.dir.path().join("shell");
    eventually("the step to begin", || {
        fs::read_to_string(&shell).is_ok_and(|text| !text.is_empty())
    });
    let (busy, told) = ended(&second, &run("2-next", "r2", 1), 30).await;
    assert_eq!(busy, Ended::Status(75));
    assert!(
        told.iter()
            .any(|line| line.starts_with("nodegraft-step:busy the step 1-work of r1@here")),
        "{told:?}"
    );
    first.cut();
    assert!(matches!(working.await.unwrap().0, Ended::Lost(_)));
    let (next, told) = ended(&second, &run("2-next", "r3", 20), 60).await;
    assert_eq!(next, Ended::Status(0));
    assert!(
        told.iter()
            .any(|line| line.starts_with("nodegraft-step:ended the step 1-work of r1@here")),
        "{told:?}"
    );
    assert!(told.contains(&"went".to_owned()));
    let pid = fs::read_to_string(&shell).unwrap();
    assert!(
        !std::path::Path::new("/proc").join(pid.trim()).exists(),
        "the orphan goes on"
    );
}
