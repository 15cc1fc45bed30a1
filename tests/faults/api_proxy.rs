//! Faults of the API server: plain HTTP for nodegraft on one side, TLS with the administrator's certificate to the real
//! server on the other. Rules decide by method, path and count; every request is kept, so that a test can say what must
//! have been in it. The guests go to the real server: `cluster.server` in the spec is `ApiProxy::server`.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use crate::in_lab::kubernetes::{kubernetes, server};

#[derive(Clone, Copy)]
pub enum Act {
    /// Answers with a Status of this code instead of the server.
    Status(u16),
    /// 429 with Retry-After, in seconds.
    Busy(u64),
    /// Asks the server and closes the connection before a byte of its answer: done, but nobody knows.
    Unanswered,
    /// Closes the connection without asking the server.
    Refused,
    /// The head and so many bytes of the answer's body; then the connection is closed. For a watch, so many of its stream.
    CutAfter(usize),
    /// The head and so many bytes of the body; then nothing more, and the connection stays open.
    SilentAfter(usize),
    /// Nothing is answered, and the connection stays open.
    Silence,
    /// A watch that answers with an ERROR event of code 410; any other request gets a Status of 410.
    Gone,
}

/// Acts on some of the requests whose method and path it names.
#[derive(Clone, Copy)]
pub struct Rule {
    /// Empty for every one.
    pub method: &'static str,
    /// A piece of the path with its query; empty for every one.
    pub path: &'static str,
    /// The first of those requests it acts on, counted from 1.
    pub from: u64,
    /// On how many of them in a row.
    pub times: u64,
    pub act: Act,
}

impl Rule {
    /// Acts once, on the first.
    pub fn once(method: &'static str, path: &'static str, act: Act) -> Self {
        Self {
            method,
            path,
            from: 1,
            times: 1,
            act,
        }
    }

    /// Acts every time.
    pub fn always(method: &'static str, path: &'static str, act: Act) -> Self {
        Self {
            method,
            path,
            from: 1,
            times: u64::MAX,
            act,
        }
    }

    fn names(&self, request: &Request) -> bool {
        (self.method.is_empty() || self.method == request.method)
            && request.path.contains(self.path)
    }
}

/// A request as nodegraft made it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    pub method: String,
    /// With its query.
    pub path: String,
    pub body: String,
}

pub struct ApiProxy {
    address: String,
    version: &'static str,
    shared: Arc<Shared>,
}

struct Shared {
    rules: Mutex<Vec<(Rule, u64)>>,
    seen: Mutex<Vec<Request>>,
    /// Connections that stay open and say nothing.
    silent: Mutex<Vec<TcpStream>>,
    tls: Arc<ClientConfig>,
    server: String,
}

impl ApiProxy {
    /// Stands before this version's API server until the test ends.
    pub fn before(version: &'static str, rules: &[Rule]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let server = server(version).trim_start_matches("https://");
        let shared = Arc::new(Shared {
            rules: Mutex::new(rules.iter().map(|rule| (*rule, 0)).collect()),
            seen: Mutex::default(),
            silent: Mutex::default(),
            tls: tls(&kubernetes(version)),
            server: server.into(),
        });
        let proxy = Self {
            address,
            version,
            shared: Arc::clone(&shared),
        };
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let shared = Arc::clone(&shared);
                // A client that goes away in the middle is no failure of the proxy.
                std::thread::spawn(move || shared.serve(client));
            }
        });
        proxy
    }

    /// The real server's URL, for `cluster.server`.
    pub fn server(&self) -> String {
        format!("https://{}", self.shared.server)
    }

    /// Writes a kubeconfig that leads through the proxy.
    pub fn kubeconfig(&self, path: &Path) {
        use base64::Engine as _;
        let ca = std::fs::read(kubernetes(self.version).join("pki/ca.crt")).unwrap();
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
             clusters:\n- name: c\n  cluster: {{server: 'http://{}', certificate-authority-data: {}}}\n\
             users:\n- name: u\n  user: {{}}\ncontexts:\n- name: c\n  context: {{cluster: c, user: u}}\n",
            self.address,
            base64::engine::general_purpose::STANDARD.encode(ca)
        );
        std::fs::write(path, text).unwrap();
    }

    /// From now on these rules; their counts begin anew.
    pub fn rules(&self, rules: &[Rule]) {
        *self.shared.rules.lock().unwrap() = rules.iter().map(|rule| (*rule, 0)).collect();
    }

    /// What was asked so far, forgotten with that.
    pub fn seen(&self) -> Vec<Request> {
        std::mem::take(&mut *self.shared.seen.lock().unwrap())
    }

    /// How often a rule acted so far.
    pub fn acted(&self) -> u64 {
        let rules = self.shared.rules.lock().unwrap();
        rules
            .iter()
            .map(|(rule, matched)| (matched + 1).saturating_sub(rule.from).min(rule.times))
            .sum()
    }
}

/// With the administrator's certificate.
fn tls(dir: &Path) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_file(dir.join("pki/ca.crt")).unwrap())
        .unwrap();
    let chain = vec![CertificateDer::from_pem_file(dir.join("admin.crt")).unwrap()];
    let key = PrivateKeyDer::from_pem_file(dir.join("admin.key")).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap();
    Arc::new(
        config
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)
            .unwrap(),
    )
}

impl Shared {
    /// One request; the connection is closed after it.
    fn serve(&self, client: TcpStream) -> Option<()> {
        let mut reader = BufReader::new(client.try_clone().ok()?);
        let (head, request) = read_request(&mut reader)?;
        let act = self.act(&request);
        self.seen.lock().unwrap().push(request.clone());
        match act {
            Some(Act::Status(code)) => answer(client, code, "", &status(code)),
            Some(Act::Busy(seconds)) => answer(
                client,
                429,
                &format!("Retry-After: {seconds}\r\n"),
                &status(429),
            ),
            Some(Act::Refused) => client.shutdown(Shutdown::Both).ok(),
            Some(Act::Silence) => self.keep(client),
            Some(Act::Gone) if request.path.contains("watch=") => {
                let event = format!("{{\"type\":\"ERROR\",\"object\":{}}}\n", status(410));
                answer(client, 200, "", &event)
            }
            Some(Act::Gone) => answer(client, 410, "", &status(410)),
            Some(Act::Unanswered) => {
                self.forward(&head, &request.body, |_| Some(true))?;
                client.shutdown(Shutdown::Both).ok()
            }
            Some(Act::CutAfter(bytes)) => {
                self.relay(&head, &request.body, &client, Some(bytes))?;
                client.shutdown(Shutdown::Both).ok()
            }
            Some(Act::SilentAfter(bytes)) => {
                self.relay(&head, &request.body, &client, Some(bytes))?;
                self.keep(client)
            }
            None => {
                self.relay(&head, &request.body, &client, None)?;
                client.shutdown(Shutdown::Both).ok()
            }
        }
    }

    fn keep(&self, client: TcpStream) -> Option<()> {
        self.silent.lock().unwrap().push(client);
        Some(())
    }

    /// What the first rule that is due does.
    fn act(&self, request: &Request) -> Option<Act> {
        let mut due = None;
        for (rule, matched) in self
            .rules
            .lock()
            .unwrap()
            .iter_mut()
            .filter(|(rule, _)| rule.names(request))
        {
            *matched += 1;
            let is_due = *matched >= rule.from && *matched - rule.from < rule.times;
            due = due.or(is_due.then_some(rule.act));
        }
        due
    }

    /// Hands the server's answer to the client as it comes: all of it, or the head and so many bytes of the body.
    fn relay(
        &self,
        head: &str,
        body: &str,
        mut client: &TcpStream,
        limit: Option<usize>,
    ) -> Option<()> {
        let mut passed = Vec::new();
        self.forward(head, body, |bytes| {
            let Some(limit) = limit else {
                client.write_all(bytes).ok()?;
                return Some(true);
            };
            let before = passed.len();
            passed.extend_from_slice(bytes);
            let end = passed
                .windows(4)
                .position(|window| window == b"\r\n\r\n")
                .map(|at| at + 4 + limit);
            let until = end.map_or(passed.len(), |end| end.min(passed.len()));
            client.write_all(&passed[before.min(until)..until]).ok()?;
            Some(end.is_none_or(|end| passed.len() < end))
        })
    }

    /// Asks the real server; `each` sees its answer in pieces and says whether it wants more.
    fn forward(
        &self,
        head: &str,
        body: &str,
        mut each: impl FnMut(&[u8]) -> Option<bool>,
    ) -> Option<()> {
        let host = self.server.split(':').next().unwrap();
        let name = ServerName::try_from(host.to_owned()).unwrap();
        let socket = TcpStream::connect(&self.server).ok()?;
        socket
            .set_read_timeout(Some(Duration::from_secs(600)))
            .ok()?;
        let mut server = StreamOwned::new(
            ClientConnection::new(Arc::clone(&self.tls), name).ok()?,
            socket,
        );
        server.write_all(head.as_bytes()).ok()?;
        server.write_all(body.as_bytes()).ok()?;
        server.flush().ok()?;
        let mut buffer = [0; 16 << 10];
        loop {
            match server.read(&mut buffer) {
                // A server that closes without TLS' own farewell has ended its answer too.
                Ok(0) | Err(_) => return Some(()),
                Ok(read) => {
                    if !each(&buffer[..read])? {
                        return Some(());
                    }
                }
            }
        }
    }
}

/// The request, and its head as the server is to get it: one request a connection.
fn read_request(reader: &mut BufReader<TcpStream>) -> Option<(String, Request)> {
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let mut words = line.split(' ');
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let (mut head, mut length) = (line.clone(), 0);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        if line.trim().is_empty() {
            break;
        }
        let (name, value) = line.split_once(':')?;
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.trim().parse().ok()?,
            // Compressed, nobody could cut it at a byte that means something.
            "connection" | "accept-encoding" => continue,
            "transfer-encoding" => {
                panic!("{method} {path}: the proxy reads bodies of a known length only")
            }
            _ => {}
        }
        head.push_str(&line);
    }
    head.push_str("Connection: close\r\n\r\n");
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some((
        head,
        Request {
            method,
            path,
            body: String::from_utf8_lossy(&body).into_owned(),
        },
    ))
}

fn answer(mut client: TcpStream, code: u16, headers: &str, body: &str) -> Option<()> {
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {code} Fault\r\nContent-Type: application/json\r\nConnection: close\r\n{headers}Content-Length: {length}\r\n\r\n"
    );
    client.write_all(head.as_bytes()).ok()?;
    client.write_all(body.as_bytes()).ok()?;
    client.shutdown(Shutdown::Write).ok()
}

/// As the API server itself says it.
fn status(code: u16) -> String {
    let reason = match code {
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "NotFound",
        409 => "Conflict",
        410 => "Expired",
        422 => "Invalid",
        429 => "TooManyRequests",
        503 => "ServiceUnavailable",
        _ => "InternalError",
    };
    format!(
        "{{\"kind\":\"Status\",\"apiVersion\":\"v1\",\"metadata\":{{}},\"status\":\"Failure\",\"message\":\"a fault of the test: {reason}\",\
         \"reason\":\"{reason}\",\"code\":{code}}}"
    )
}
