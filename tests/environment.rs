//! People's environments: KUBECONFIG as they set it, proxies, kubeconfigs of several files, paths from elsewhere.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};

use nodegraft::core::error::one_line;
use nodegraft::rooms::cluster::Cluster;

use crate::api_server::ApiServer;
use crate::fixture::rewritten;
use crate::spec::GOOD;

struct Ran {
    code: i32,
    said: String,
}

impl Ran {
    fn ends_well(&self) {
        assert_eq!(self.code, 0, "{}", self.said);
    }

    fn ends(&self, code: i32, words: &[&str]) {
        assert_eq!(self.code, code, "{}", self.said);
        for word in words {
            assert!(
                self.said.contains(word),
                "`{word}` is not in:\n{}",
                self.said
            );
        }
        assert!(
            !self.said.contains("KubeconfigError") && !self.said.contains("os error"),
            "{}",
            self.said
        );
    }
}

/// `nodegraft token list` in a directory, with variables set.
fn token_list(at: &Path, more: &[&str], env: &[(&str, &str)]) -> Ran {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nodegraft"));
    command
        .args(["token", "list"])
        .args(more)
        .current_dir(at)
        .env("HOME", at);
    for name in [
        "KUBECONFIG",
        "HTTPS_PROXY",
        "https_proxy",
        "NO_PROXY",
        "no_proxy",
    ] {
        command.env_remove(name);
    }
    let output = command.envs(env.iter().copied()).output().unwrap();
    Ran {
        code: output.status.code().unwrap(),
        said: String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned(),
    }
}

/// The parts of a kubeconfig in two files, as people keep clusters apart from credentials.
fn halves(whole: &str) -> (String, String) {
    let (clusters, rest) = whole.split_once("users:").unwrap();
    let head = "apiVersion: v1\nkind: Config\n";
    (clusters.to_owned(), format!("{head}users:{rest}"))
}

#[test]
fn kubeconfig_as_people_set_it() {
    let api = ApiServer::new();
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    let (clusters, users) = halves(&api.kubeconfig());
    fs::create_dir(at.join(".kube")).unwrap();
    fs::write(at.join("clusters"), clusters).unwrap();
    fs::write(at.join("users"), users).unwrap();
    fs::write(at.join("whole"), api.kubeconfig()).unwrap();
    // A list, with files that are not there and empty names in it; the path is relative.
    token_list(at, &[], &[("KUBECONFIG", "absent:clusters::users")]).ends_well();
    token_list(at, &[], &[("KUBECONFIG", "clusters")])
        .ends(4, &["using", "clusters", "no context `c`"]);
    token_list(at, &[], &[("KUBECONFIG", "absent")]).ends(4, &["absent", "no such file"]);
    // Empty is as unset: kubectl's own place.
    token_list(at, &[], &[("KUBECONFIG", "")]).ends(4, &[".kube/config", "no such file"]);
    fs::write(at.join(".kube/config"), api.kubeconfig()).unwrap();
    token_list(at, &[], &[("KUBECONFIG", "")]).ends_well();
    token_list(at, &[], &[]).ends_well();
    // The flag wins over the variable, and so does a spec.
    token_list(at, &["--kubeconfig", "whole"], &[("KUBECONFIG", "absent")]).ends_well();
    fs::create_dir(at.join("specs")).unwrap();
    fs::write(
        at.join("specs/cluster.yaml"),
        GOOD.replace("~/.kube/config", "../whole"),
    )
    .unwrap();
    token_list(
        at,
        &["-f", "specs/cluster.yaml"],
        &[("KUBECONFIG", "absent")],
    )
    .ends_well();
}

/// A forward proxy that notes what it is asked for, and leads everything to one address.
struct Proxy {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Proxy {
    fn to(target: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let proxy = Self {
            address: listener.local_addr().unwrap(),
            asked: Arc::clone(&asked),
        };
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let (asked, target) = (Arc::clone(&asked), target.clone());
                std::thread::spawn(move || serve(&client, &asked, &target));
            }
        });
        proxy
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut *self.asked.lock().unwrap())
    }
}

fn serve(client: &TcpStream, asked: &Mutex<Vec<String>>, target: &str) -> Option<()> {
    let mut reader = BufReader::new(client.try_clone().ok()?);
    let mut first = String::new();
    reader.read_line(&mut first).ok()?;
    asked.lock().unwrap().push(first.trim().to_owned());
    let mut line = String::new();
    while reader.read_line(&mut line).ok()? > 2 {
        line.clear();
    }
    let server = TcpStream::connect(target).ok()?;
    let (mut to_client, mut to_server) = (client.try_clone().ok()?, server.try_clone().ok()?);
    to_client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").ok()?;
    std::thread::spawn(move || std::io::copy(&mut reader, &mut to_server));
    std::io::copy(&mut server.try_clone().ok()?, &mut to_client).ok()?;
    client.shutdown(std::net::Shutdown::Both).ok()
}

#[test]
fn a_cluster_behind_a_proxy() {
    let api = ApiServer::new();
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    let address = api
        .kubeconfig()
        .split("http://")
        .nth(1)
        .unwrap()
        .split('\'')
        .next()
        .unwrap()
        .to_owned();
    // A name that only the proxy knows.
    let far = api.kubeconfig().replace(&address, "api.invalid:6443");
    fs::write(at.join("far"), &far).unwrap();
    fs::write(at.join("near"), api.kubeconfig()).unwrap();
    let proxy = Proxy::to(address);
    let far_by = |env: &[(&str, &str)]| token_list(at, &["--kubeconfig", "far"], env);
    far_by(&[("HTTPS_PROXY", &proxy.url())]).ends_well();
    assert!(proxy.asked()[0].starts_with("CONNECT api.invalid:6443"));
    far_by(&[
        ("https_proxy", &proxy.url()),
        ("NO_PROXY", "elsewhere.invalid,10.0.0.0/8"),
    ])
    .ends_well();
    assert!(!proxy.asked().is_empty());
    let straight = far_by(&[("HTTPS_PROXY", &proxy.url()), ("NO_PROXY", ".invalid")]);
    straight.ends(4, &["the API server http://api.invalid:6443"]);
    assert!(proxy.asked().is_empty(), "NO_PROXY names the server");
    // This machine is never asked through a proxy of the environment.
    token_list(
        at,
        &["--kubeconfig", "near"],
        &[("HTTPS_PROXY", "http://127.0.0.1:9")],
    )
    .ends_well();
    let empty = far_by(&[("HTTPS_PROXY", &proxy.url()), ("NO_PROXY", "localhost,,")]);
    empty.ends(4, &["NO_PROXY holds an item", "single commas"]);
    // What the kubeconfig itself says holds whatever the environment does.
    let own = far.replace(
        "{server:",
        &format!("{{proxy-url: '{}', server:", proxy.url()),
    );
    fs::write(at.join("far"), own).unwrap();
    far_by(&[("NO_PROXY", "*")]).ends_well();
    assert!(!proxy.asked().is_empty());
}

#[test]
fn what_is_wrong_is_named() {
    let api = ApiServer::new();
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    fs::write(at.join("good"), api.kubeconfig()).unwrap();
    fs::write(at.join("bad"), "clusters: [}").unwrap();
    let list = token_list(at, &[], &[("KUBECONFIG", "good:bad")]);
    list.ends(4, &["/bad: it is not a kubeconfig"]);
    let plugin = "user: {exec: {apiVersion: client.authentication.k8s.io/v1, command: ./absent, interactiveMode: Never}}";
    let text = rewritten(&api.kubeconfig(), "user: {}", plugin);
    fs::write(at.join("plugin"), text).unwrap();
    let plugin = token_list(at, &["--kubeconfig", "plugin"], &[]);
    plugin.ends(4, &["its exec plugin cannot be started"]);
}

/// While a CA is replaced its bundle has the old and the new one: nodes are told both.
#[tokio::test]
async fn the_whole_bundle_of_the_ca_is_handed_on() {
    use base64::Engine as _;
    let base64 = base64::engine::general_purpose::STANDARD;
    let api = ApiServer::new();
    let text = api.kubeconfig();
    let one = text
        .split("certificate-authority-data: ")
        .nth(1)
        .unwrap()
        .split('}')
        .next()
        .unwrap();
    let pem = String::from_utf8(base64.decode(one).unwrap()).unwrap();
    let two = base64.encode(format!("{pem}{pem}"));
    let cluster = Cluster::from_text(&text.replace(one, &two), "the test", None)
        .await
        .unwrap();
    assert_eq!(cluster.ca_pem.matches("BEGIN CERTIFICATE").count(), 2);
    assert_eq!(
        base64.decode(&cluster.ca_base64).unwrap(),
        cluster.ca_pem.as_bytes()
    );
    let none = text.replace(&format!(", certificate-authority-data: {one}"), "");
    let error = Cluster::from_text(&none, "the test", None)
        .await
        .err()
        .unwrap();
    assert!(
        one_line(&error).contains("no certificate authority"),
        "{error}"
    );
}
