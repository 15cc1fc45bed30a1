//! What a user can provoke: each trouble has its exit code by name, says what and why and what to do, and no library speaks.

use std::fs;
use std::io::Write;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::Value;

use crate::api_server::{ApiServer, Fault};
use crate::fixture::{Exit, Home, Ran};
use crate::spec::GOOD;

/// Words of libraries, of Rust and of the system's numbers.
const LIBRARY_WORDS: &[&str] = &[
    "ApiError",
    "DuplicateKeyPolicy",
    "Error {",
    "HyperError",
    "IO error",
    "InvalidCertificate",
    "None",
    "Option<",
    "Os {",
    "ServiceError",
    "Session(",
    "Some(",
    "UnknownIssuer",
    "client error",
    "code=",
    "deserializ",
    "hyper",
    "invalid peer",
    "kubeconfig YAML",
    "os error",
    "panicked",
    "rustls",
    "scalar",
    "serde",
    "tcp connect",
    "u16",
    "u32",
];

trait Speaks {
    fn speaks(&self, wanted: &[&str]);
}

impl Speaks for Ran {
    /// Says all of these, and nothing that only a library would say.
    #[track_caller]
    fn speaks(&self, wanted: &[&str]) {
        self.says_all(wanted);
        for word in LIBRARY_WORDS {
            self.never_says(word);
        }
    }
}

/// `token list` with the kubeconfig `k` of a home, past whatever proxy this machine has.
fn list_tokens(home: &Home) -> Ran {
    let no_proxy = ("HTTPS_PROXY", String::new());
    home.run_with(&["token", "list", "--kubeconfig", "k"], &[no_proxy])
}

fn write(home: &Home, name: &str, bytes: impl AsRef<[u8]>) {
    fs::write(home.path(name), bytes).unwrap();
}

#[test]
fn a_spec_is_refused_in_words_of_its_own() {
    let cases = [
        (
            "  cpus: 2\n",
            "  cpus: two\n",
            "cluster.yaml:12:9: this is not a whole number",
        ),
        (
            "  cpus: 2\n",
            "  cpus: 2\n  cpus: 4\n",
            "cluster.yaml:13:3: the key `cpus` is given twice",
        ),
        (
            "version: 1\n",
            "version: one\n",
            "cluster.yaml:1:10: this is not a whole number",
        ),
        (
            "{bridge: br0}",
            "{brigde: br0}",
            "`brigde` is not one of bridge, network",
        ),
        (
            "  dns: [223.5.5.5]\n",
            "  dns: 223.5.5.5\n",
            "this is not a list",
        ),
        (
            "  memory: 4GiB\n",
            "  memory: [4]\n",
            "this is not a single value",
        ),
        ("  name: homelab\n", "", "the key `name` is missing"),
        ("  pool: kvmimage\n", "  pool: ~\n", "a text is expected"),
        ("[223.5.5.5]", "[223.5.5.5}", "this is not YAML"),
    ];
    for (text, bad, told) in cases {
        assert!(GOOD.contains(text));
        Home::of(&GOOD.replacen(text, bad, 1))
            .run(&["plan"])
            .exits(Exit::Refused)
            .speaks(&["cluster.yaml was refused", told, "help: "]);
    }
}

#[test]
fn files_of_the_user_are_told_of_by_what_is_wrong_with_them() {
    let home = Home::of(GOOD);
    write(&home, "binary", [0xff, 0xfe]);
    write(&home, "there", "");
    let cases: [(&[&str], Exit, &[&str]); 9] = [
        (
            &["templates", "/proc/x"],
            Exit::Unfit,
            &["making /proc/x", "nothing can be made there", "help: "],
        ),
        (
            &["templates", "there"],
            Exit::Refused,
            &["there exists already", "help: "],
        ),
        (
            &["templates", "there/below"],
            Exit::Unfit,
            &["making there/below", "not a directory"],
        ),
        (
            &["plan", "-f", "absent"],
            Exit::Refused,
            &["reading the spec absent", "it does not exist", "help: "],
        ),
        (
            &["plan", "-f", "binary"],
            Exit::Refused,
            &["reading the spec binary", "it is not text"],
        ),
        (
            &["plan", "-f", "."],
            Exit::Refused,
            &["reading the spec .", "it is a directory"],
        ),
        (
            &["--templates", "absent", "plan"],
            Exit::Refused,
            &["reading the template directory absent", "it does not exist"],
        ),
        (
            &["token", "create", "secret"],
            Exit::Usage,
            &["this is not a bootstrap token", "help: "],
        ),
        (
            &["down", "--recreate"],
            Exit::Usage,
            &["unexpected argument"],
        ),
    ];
    for (args, exit, told) in cases {
        home.run(args).exits(exit).speaks(told);
    }
}

#[test]
fn this_machine_may_be_unfit() {
    let home = Home::of(GOOD);
    let no_home = ("NODEGRAFT_STATE_DIR", "/proc/x".to_owned());
    home.run_with(&["down"], &[no_home])
        .exits(Exit::Unfit)
        .speaks(&["making the directory /proc/x/homelab", "help: "]);
    let full = fs::OpenOptions::new()
        .write(true)
        .open("/dev/full")
        .unwrap();
    let output = home.command(&["plan"]).stdout(full).output().unwrap();
    let ran = Ran {
        code: output.status.code(),
        stdout: String::new(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    };
    ran.exits(Exit::Unfit)
        .speaks(&["writing to stdout", "no space left on device"]);
    let home = Home::of(&GOOD.replace("qemu:///system", "qemu+tcp://127.0.0.1:1/system"));
    home.run(&["status"]).exits(Exit::Unfit).speaks(&[
        "libvirt is not reachable at qemu+tcp://127.0.0.1:1/system",
        "Connection refused",
        "help: is libvirtd running there",
    ]);
}

#[test]
fn a_login_key_is_refused_by_what_is_wrong_with_it() {
    let home = Home::of(GOOD);
    write(&home, "text", "no key\n");
    let locked = home.path("locked");
    let made = Command::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "secret", "-f"])
        .arg(&locked)
        .status()
        .expect("openssh-client is installed");
    assert!(made.success());
    for (key, why) in [
        ("absent", "it does not exist"),
        ("text", "it is not a private key in OpenSSH's form"),
        ("locked", "it is encrypted with a passphrase"),
    ] {
        let path = home.path(key);
        let spec = GOOD.replace(
            "defaults:",
            &format!("ssh: {{key: '{}'}}\ndefaults:", path.display()),
        );
        write(&home, "cluster.yaml", spec);
        home.run(&["up", "--yes"]).exits(Exit::Refused).speaks(&[
            &format!("reading the SSH key {}", path.display()),
            why,
            "correct `ssh.key` in the spec",
        ]);
    }
}

#[test]
fn a_template_is_refused_at_its_place() {
    let home = Home::of(GOOD);
    for (script, told) in [
        (
            "true\n{{ nodes.name }}\n",
            "init.sh:2:4: variable `nodes` is not defined",
        ),
        ("{% if %}\n", "init.sh:1:7: found `%}`"),
    ] {
        home.template("profiles/debian-containerd/init.sh", script);
        home.run(&["plan"])
            .exits(Exit::Refused)
            .speaks(&[told, "^"]);
    }
}

// -- the API server --

fn kubeconfig(server: &str, ca: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\nclusters:\n- name: c\n  cluster: {{server: '{server}', certificate-authority: {ca}}}\n\
         users:\n- name: u\n  user: {{}}\ncontexts:\n- name: c\n  context: {{cluster: c, user: u}}\n"
    )
}

/// A self-signed certificate, and its key, as files of a directory.
fn certificate(dir: &Path, name: &str, ca: bool, address: &str) {
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj"])
        .arg(format!("/CN={name}"))
        .args(["-addext", &format!("subjectAltName={address}")])
        .args([
            "-addext",
            if ca {
                "basicConstraints=critical,CA:TRUE"
            } else {
                "basicConstraints=critical,CA:FALSE"
            },
        ])
        .arg("-keyout")
        .arg(dir.join(format!("{name}.key")))
        .arg("-out")
        .arg(dir.join(format!("{name}.crt")))
        .stderr(Stdio::null())
        .status()
        .expect("openssl is installed");
    assert!(made.success());
}

/// Accepts for ever, and does this with each connection.
fn listen(with: impl Fn(TcpStream) + Send + 'static) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            with(stream);
        }
    });
    port
}

#[test]
fn a_kubeconfig_is_unfit_by_what_is_wrong_with_it() {
    let home = Home::of(GOOD);
    write(&home, "binary", [0xff]);
    list_tokens(&home).exits(Exit::Unfit).speaks(&[
        "reading the kubeconfig /",
        "it cannot be read: no such file or directory",
        "help: ",
    ]);
    let whole = kubeconfig("https://127.0.0.1:1", "ca.crt");
    let cases = [
        ("clusters: [", "it is not a kubeconfig: line 1"),
        ("users: 3\n", "it is not a kubeconfig: line 1, column 8"),
        ("apiVersion: v1\n", "it has no current context"),
        (
            &whole.replace("current-context: c", "current-context: d"),
            "it has no context `d`",
        ),
        (
            &whole.replace("{cluster: c,", "{cluster: e,"),
            "it has no cluster `e`, which its context names",
        ),
        (
            &whole.replace("https://127.0.0.1:1", "not a url"),
            "its server is not a URL",
        ),
        (&whole, "ca.crt: no such file or directory"),
        (
            &whole.replace(
                "certificate-authority: ca.crt",
                "certificate-authority-data: '%'",
            ),
            "its certificate authority cannot be read: it is not base64",
        ),
        (
            &whole.replace(", certificate-authority: ca.crt", ""),
            "it has no certificate authority",
        ),
    ];
    for (text, told) in cases {
        write(&home, "k", text);
        list_tokens(&home)
            .exits(Exit::Unfit)
            .speaks(&["the kubeconfig /", told, "help: "]);
    }
    home.run(&["token", "list", "--kubeconfig", "binary"])
        .exits(Exit::Unfit)
        .speaks(&["/binary"]);
}

#[test]
fn an_api_server_is_unfit_by_what_it_answers() {
    let api = ApiServer::new();
    let home = Home::of(GOOD);
    write(&home, "k", api.kubeconfig());
    list_tokens(&home).exits(Exit::Done).speaks(&[]);
    api.always(
        "GET /api/v1/namespaces/kube-system/secrets",
        Fault::Status(403, Value::Null),
    );
    list_tokens(&home).exits(Exit::Unfit).speaks(&[
        "listing the bootstrap tokens",
        "because it is told to",
        "help: this kubeconfig's user has no permission",
    ]);
    api.always("GET /version", Fault::Status(401, Value::Null));
    list_tokens(&home).exits(Exit::Unfit).speaks(&[
        "cannot be used",
        "for its version",
        "help: the credentials in this kubeconfig are not accepted",
    ]);
}

#[test]
fn an_existing_file_is_not_overwritten_with_a_kubeconfig() {
    let api = ApiServer::new();
    let home = Home::of(GOOD);
    write(&home, "k", api.kubeconfig());
    write(&home, "out", "mine");
    home.run(&[
        "kubeconfig",
        "bootstrap",
        "--kubeconfig",
        "k",
        "--token",
        "abcdef.0123456789abcdef",
        "--write",
        "out",
    ])
    .exits(Exit::Refused)
    .speaks(&[
        "writing the kubeconfig out",
        "it exists already",
        "help: name one that does not exist",
    ]);
    assert_eq!(fs::read(home.path("out")).unwrap(), b"mine");
}

#[test]
fn whoever_answers_in_the_place_of_an_api_server_is_told_of() {
    let home = Home::of(GOOD);
    let dir = &home.path("");
    certificate(dir, "ca", true, "IP:127.0.0.1");
    certificate(dir, "server", false, "IP:127.0.0.1");
    certificate(dir, "named", false, "DNS:elsewhere.example");
    let try_at = |server: &str, ca: &str, told: &str| {
        fs::write(dir.join("k"), kubeconfig(server, ca)).unwrap();
        let first = format!("the API server {server} cannot be used");
        list_tokens(&home)
            .exits(Exit::Unfit)
            .speaks(&[&first, told, "help: "]);
    };
    let free = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    try_at(&format!("https://{free}"), "ca.crt", "connection refused");
    try_at(
        "https://nobody.invalid:6443",
        "ca.crt",
        "this machine does not know the name in its address",
    );
    let plain = listen(|mut stream| {
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
        let _ = stream.shutdown(Shutdown::Write);
        let _ = std::io::copy(&mut stream, &mut std::io::sink());
    });
    try_at(
        &format!("https://127.0.0.1:{plain}"),
        "ca.crt",
        "what answers there does not speak TLS",
    );
    let other = listen(|mut stream| {
        let mut got = [0; 1024];
        let _ = std::io::Read::read(&mut stream, &mut got);
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello");
    });
    try_at(
        &format!("http://127.0.0.1:{other}"),
        "ca.crt",
        "what answers there is not an API server",
    );
    try_at(
        &format!("https://127.0.0.1:{}", tls(dir, "server")),
        "ca.crt",
        "the server's certificate is not signed by the CA in this kubeconfig",
    );
    try_at(
        &format!("https://127.0.0.1:{}", tls(dir, "named")),
        "named.crt",
        "the server's certificate is not for the address in this kubeconfig",
    );
}

/// A TLS server with this certificate, which answers nothing.
fn tls(dir: &Path, name: &str) -> u16 {
    let file = |end: &str| dir.join(format!("{name}.{end}"));
    let certificate = CertificateDer::from_pem_file(file("crt")).unwrap();
    let key = PrivateKeyDer::from_pem_file(file("key")).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    let config = Arc::new(config);
    listen(move |stream| {
        let connection = ServerConnection::new(Arc::clone(&config)).unwrap();
        let mut tls = StreamOwned::new(connection, stream);
        let _ = std::io::copy(&mut tls, &mut std::io::sink());
    })
}

// -- SSH --

#[test]
fn whoever_answers_in_the_place_of_an_sshd_is_told_of() {
    let home = Home::of(GOOD);
    let try_at = |port: u16, told: &str| {
        let spec = GOOD.replace(
            "  kubeconfig: ~/.kube/config\n",
            &format!("  control_plane: root@127.0.0.1:{port}\n"),
        );
        write(&home, "cluster.yaml", spec);
        home.run(&["token", "list", "-f", "cluster.yaml"])
            .exits(Exit::Unfit)
            .speaks(&[
                &format!("logging in to the control plane root@127.0.0.1:{port}"),
                told,
                "help: does `ssh ",
            ]);
    };
    try_at(
        listen(|mut stream| {
            // What it was sent is read first, or its end is a reset.
            let _ = std::io::Read::read(&mut stream, &mut [0; 256]);
        }),
        "the other end closed the connection",
    );
    let free = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    try_at(free.port(), "connection refused: nothing listens there");
    try_at(
        listen(|mut stream| {
            let _ = stream.write_all(b"SSH-2.0-short\r\n");
        }),
        "no keys could be agreed on",
    );
}
