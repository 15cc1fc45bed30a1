//! An API server of a few hundred lines on loopback, for what the cluster's room does when things go wrong: it keeps
//! objects with UIDs and versions, holds to preconditions as the real one does, remembers every request, and fails where
//! it is told to. Plain HTTP, a connection for each request.

use std::collections::{BTreeMap, VecDeque};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};

use nodegraft::rooms::cluster::Cluster;
use serde_json::{Value, json};

/// What was asked.
#[derive(Debug, Clone)]
pub struct Request {
    /// `GET /api/v1/nodes/n1`, without the query.
    pub what: String,
    pub query: String,
    pub body: Value,
}

impl Request {
    fn parameter<T: std::str::FromStr>(&self, name: &str) -> Option<T> {
        self.query
            .split('&')
            .find_map(|pair| pair.strip_prefix(name)?.strip_prefix('=')?.parse().ok())
    }

    fn is_watch(&self) -> bool {
        self.query.contains("watch=true")
    }

    /// `GET /api/v1/nodes` is a list and no watch, `WATCH /api/v1/nodes` the watch, `GET /api/v1/nodes?continue=250` one with
    /// that parameter, and `DELETE *` all that begin so.
    fn is(&self, what: &str) -> bool {
        let (what, wanted) = what.split_once('?').unwrap_or((what, ""));
        if !wanted.is_empty() && self.query.split('&').all(|pair| pair != wanted) {
            return false;
        }
        let own = if self.is_watch() {
            self.what.replace("GET ", "WATCH ")
        } else {
            self.what.clone()
        };
        what.strip_suffix('*')
            .map_or(own == what, |start| own.starts_with(start))
    }
}

/// A fault.
#[derive(Debug, Clone)]
pub enum Fault {
    /// A Status with that code.
    Status(u16, Value),
    /// Text with that code, as a proxy answers.
    Text(u16, &'static str),
    /// The connection ends before the answer.
    Cut,
    /// The connection ends in the middle of the right answer.
    CutInTheMiddle,
    /// The right thing is done, and its answer is lost.
    DoneButCut,
    /// These lines of a watch, then its end.
    Events(Vec<Value>),
}

type Hook = Box<dyn FnMut(&mut Objects) + Send>;

/// What it keeps: objects by their paths.
#[derive(Default)]
pub struct Objects {
    objects: BTreeMap<String, Value>,
    version: u64,
}

impl Objects {
    pub fn put(&mut self, path: &str, mut object: Value) {
        self.version += 1;
        let meta = &mut object["metadata"];
        meta["name"] = json!(path.rsplit('/').next().unwrap());
        meta["resourceVersion"] = json!(self.version.to_string());
        if meta["uid"].is_null() {
            meta["uid"] = json!(format!("uid-{}", self.version));
        }
        self.objects.insert(path.to_owned(), object);
    }

    pub fn remove(&mut self, path: &str) {
        self.version += 1;
        self.objects.remove(path);
    }

    pub fn get(&self, path: &str) -> Option<Value> {
        self.objects.get(path).cloned()
    }
}

#[derive(Default)]
struct State {
    kept: Objects,
    seen: Vec<Request>,
    /// By kind of request, see [`Request::is`], in the order of arrival.
    faults: Vec<(String, VecDeque<Fault>)>,
    /// Every time.
    lasting: Vec<(String, Fault)>,
    /// Run once, after the first such request was answered.
    after: Vec<(String, Hook)>,
    /// `verb resource` that a review of access denies.
    denied: Vec<String>,
}

/// The server. Ends with the test's process.
pub struct ApiServer {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    up: Arc<AtomicBool>,
}

const COLLECTIONS: [&str; 6] = [
    "nodes",
    "pods",
    "secrets",
    "leases",
    "certificatesigningrequests",
    "clusterrolebindings",
];

impl ApiServer {
    pub fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = Self {
            address: listener.local_addr().unwrap(),
            state: Arc::default(),
            up: Arc::new(AtomicBool::new(true)),
        };
        server.serve(listener);
        server
    }

    fn serve(&self, listener: TcpListener) {
        listener.set_nonblocking(true).unwrap();
        let (state, up) = (Arc::clone(&self.state), Arc::clone(&self.up));
        std::thread::spawn(move || {
            while up.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((stream, _)) => {
                        stream.set_nonblocking(false).unwrap();
                        let state = Arc::clone(&state);
                        std::thread::spawn(move || answer(&stream, &state));
                    }
                    Err(_) => std::thread::sleep(Duration::from_millis(5)),
                }
            }
        });
    }

    /// From now on connections are refused, for so long; those that are open stay.
    pub fn down_for(&self, time: Duration) {
        self.up.store(false, Ordering::Relaxed);
        while TcpStream::connect(self.address).is_ok() {
            std::thread::sleep(Duration::from_millis(5));
        }
        let again = Self {
            address: self.address,
            state: Arc::clone(&self.state),
            up: Arc::clone(&self.up),
        };
        std::thread::spawn(move || {
            std::thread::sleep(time);
            let listener = TcpListener::bind(again.address).unwrap();
            again.up.store(true, Ordering::Relaxed);
            again.serve(listener);
        });
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub fn put(&self, path: &str, object: Value) {
        self.state().kept.put(path, object);
    }

    pub fn remove(&self, path: &str) {
        self.state().kept.remove(path);
    }

    pub fn get(&self, path: &str) -> Option<Value> {
        self.state().kept.get(path)
    }

    /// The next such requests fail so, one after the other.
    pub fn fail(&self, what: &str, faults: impl IntoIterator<Item = Fault>) {
        self.state()
            .faults
            .push((what.to_owned(), faults.into_iter().collect()));
    }

    /// Every such request fails so.
    pub fn always(&self, what: &str, fault: Fault) {
        self.state().lasting.push((what.to_owned(), fault));
    }

    /// Whoever asks whether he may is told that he may not: `list pods`.
    pub fn deny(&self, what: &[&str]) {
        self.state()
            .denied
            .extend(what.iter().map(|what| (*what).to_owned()));
    }

    /// Does something once, after the first such request.
    pub fn after(&self, what: &str, hook: impl FnMut(&mut Objects) + Send + 'static) {
        self.state().after.push((what.to_owned(), Box::new(hook)));
    }

    /// The requests of that kind.
    pub fn seen(&self, what: &str) -> Vec<Request> {
        self.state()
            .seen
            .iter()
            .filter(|request| request.is(what))
            .cloned()
            .collect()
    }

    pub fn kubeconfig(&self) -> String {
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\nclusters:\n- name: c\n  cluster: {{server: 'http://{}', certificate-authority-data: {}}}\n\
             users:\n- name: u\n  user: {{}}\ncontexts:\n- name: c\n  context: {{cluster: c, user: u}}\n",
            self.address,
            ca()
        )
    }

    pub async fn connect(&self) -> Cluster {
        Cluster::from_text(&self.kubeconfig(), "the test", None)
            .await
            .unwrap()
    }
}

/// Never used over plain HTTP, but a kubeconfig without one is refused.
fn ca() -> &'static str {
    static CA: OnceLock<String> = OnceLock::new();
    CA.get_or_init(|| {
        use base64::Engine as _;
        let made = std::process::Command::new("openssl")
            .args([
                "req",
                "-x509",
                "-newkey",
                "rsa:2048",
                "-nodes",
                "-keyout",
                "/dev/null",
                "-subj",
                "/CN=ca",
            ])
            .output()
            .unwrap();
        base64::engine::general_purpose::STANDARD.encode(made.stdout)
    })
}

fn read(stream: &TcpStream) -> Option<Request> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let (method, url) = line.strip_suffix(" HTTP/1.1\r\n")?.split_once(' ')?;
    let (path, query) = url.split_once('?').unwrap_or((url, ""));
    let what = format!("{method} {path}");
    let query = query
        .replace("%3D", "=")
        .replace("%2F", "/")
        .replace("%3A", ":")
        .replace("%2C", ",");
    let mut length = 0;
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).ok()?;
        let header = header.trim().to_lowercase();
        if header.is_empty() {
            break;
        }
        length = header
            .strip_prefix("content-length: ")
            .map_or(length, |value| value.parse().unwrap());
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
    Some(Request { what, query, body })
}

fn answer(mut stream: &TcpStream, shared: &Mutex<State>) {
    let Some(request) = read(stream) else { return };
    let mut state = shared.lock().unwrap();
    state.seen.push(request.clone());
    let fault = state.fault(&request);
    let instead = matches!(
        fault,
        Some(Fault::Status(..) | Fault::Text(..) | Fault::Cut | Fault::Events(_))
    );
    let done = if instead || request.is_watch() {
        None
    } else {
        Some(state.handle(&request))
    };
    state.hooks(&request);
    drop(state);
    let (code, body) = match (&fault, done) {
        (Some(Fault::Cut | Fault::DoneButCut), _) => return,
        (Some(Fault::Status(code, details)), _) => status(*code, "it is told to", details),
        (Some(Fault::Text(code, text)), _) => (*code, (*text).to_owned()),
        (Some(Fault::Events(events)), _) => {
            begin_watch(stream);
            for event in events {
                let _ = writeln!(stream, "{event}");
            }
            return;
        }
        (_, Some(reply)) => reply,
        (_, None) => return watch(stream, &request, shared),
    };
    let sent = if matches!(fault, Some(Fault::CutInTheMiddle)) {
        body.len() / 2
    } else {
        body.len()
    };
    let head = format!(
        "HTTP/1.1 {code} X\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    let _ = stream.write_all(head.as_bytes());
    let _ = stream.write_all(&body.as_bytes()[..sent]);
}

fn begin_watch(mut stream: &TcpStream) {
    let _ = stream.write_all(
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n",
    );
}

/// Tells what changes, until nobody listens or for so long as the client asked.
fn watch(mut stream: &TcpStream, request: &Request, shared: &Mutex<State>) {
    let mut from: u64 = request.parameter("resourceVersion").unwrap_or(0);
    let until = Instant::now() + Duration::from_secs(request.parameter("timeoutSeconds").unwrap());
    begin_watch(stream);
    while Instant::now() < until {
        let (changed, version) = {
            let state = shared.lock().unwrap();
            let newer = |object: &Value| {
                object["metadata"]["resourceVersion"]
                    .as_str()
                    .unwrap()
                    .parse::<u64>()
                    .unwrap()
                    > from
            };
            (
                state
                    .kept
                    .list(request)
                    .into_iter()
                    .filter(newer)
                    .collect::<Vec<_>>(),
                state.kept.version,
            )
        };
        from = version;
        for object in changed {
            if writeln!(stream, "{}", json!({"type": "MODIFIED", "object": object})).is_err() {
                return;
            }
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn status(code: u16, message: &str, details: &Value) -> (u16, String) {
    let reason = match code {
        404 => "NotFound",
        409 => "Conflict",
        _ => "Told",
    };
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "details": details, "code": code,
    });
    (code, status.to_string())
}

impl Objects {
    /// The objects of a collection that a list or a watch asks for.
    fn list(&self, request: &Request) -> Vec<Value> {
        let path = request.what.split_once(' ').unwrap().1;
        let (parent, kind) = path.rsplit_once('/').unwrap();
        let selected = |object: &Value| {
            request
                .query
                .split('&')
                .filter_map(|pair| pair.split_once('='))
                .all(|(name, value)| match (name, value.split_once('=')) {
                    ("fieldSelector", Some(("type", wanted))) => object["type"] == wanted,
                    ("fieldSelector", Some((field, wanted))) => {
                        object.pointer(&format!("/{}", field.replace('.', "/")))
                            == Some(&json!(wanted))
                    }
                    ("labelSelector", Some((label, wanted))) => {
                        object["metadata"]["labels"][label] == wanted
                    }
                    _ => true,
                })
        };
        let inside = |at: &str| {
            let (collection, _) = at.rsplit_once('/').unwrap();
            collection == path
                || (collection.starts_with(&format!("{parent}/namespaces/"))
                    && collection.ends_with(&format!("/{kind}")))
        };
        self.objects
            .iter()
            .filter(|(at, object)| inside(at) && selected(object))
            .map(|(_, object)| object.clone())
            .collect()
    }

    fn delete(&mut self, path: &str, uid: &Value) -> (u16, String) {
        match self.objects.get(path) {
            None => status(404, "not found", &Value::Null),
            Some(object) if !uid.is_null() && object["metadata"]["uid"] != *uid => status(
                409,
                "the UID in the precondition does not match the UID in record",
                &Value::Null,
            ),
            Some(object) if object["metadata"]["finalizers"].is_array() => {
                let mut held = object.clone();
                held["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
                self.put(path, held);
                (200, self.objects[path].to_string())
            }
            Some(_) => {
                self.remove(path);
                (200, json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}).to_string())
            }
        }
    }

    fn update(&mut self, path: &str, new: &Value) -> (u16, String) {
        let Some(old) = self.get(path) else {
            return status(404, "not found", &Value::Null);
        };
        let given = &new["metadata"];
        if !given["uid"].is_null() && given["uid"] != old["metadata"]["uid"] {
            return status(
                422,
                "metadata.uid: Invalid value: field is immutable",
                &Value::Null,
            );
        }
        if !given["resourceVersion"].is_null()
            && given["resourceVersion"] != old["metadata"]["resourceVersion"]
        {
            return status(409, "the object has been modified", &Value::Null);
        }
        let mut merged = old;
        merge(&mut merged, new);
        self.put(path, merged);
        (200, self.objects[path].to_string())
    }
}

/// JSON merge patch, RFC 7386.
fn merge(into: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *into = patch.clone();
        return;
    };
    if !into.is_object() {
        *into = json!({});
    }
    for (key, value) in patch {
        if value.is_null() {
            into.as_object_mut().unwrap().remove(key);
        } else {
            merge(&mut into[key], value);
        }
    }
}

impl State {
    fn fault(&mut self, request: &Request) -> Option<Fault> {
        let next = self
            .faults
            .iter_mut()
            .find(|(what, faults)| request.is(what) && !faults.is_empty());
        let next = next.and_then(|(_, faults)| faults.pop_front());
        next.or_else(|| {
            self.lasting
                .iter()
                .find(|(what, _)| request.is(what))
                .map(|(_, fault)| fault.clone())
        })
    }

    fn hooks(&mut self, request: &Request) {
        if let Some(at) = self.after.iter().position(|(what, _)| request.is(what)) {
            (self.after.remove(at).1)(&mut self.kept);
        }
    }

    fn handle(&mut self, request: &Request) -> (u16, String) {
        let (method, path) = request.what.split_once(' ').unwrap();
        let last = path.rsplit('/').next().unwrap();
        let kept = &mut self.kept;
        match (method, path) {
            ("GET", "/version") => {
                let told = [
                    "major",
                    "minor",
                    "gitCommit",
                    "gitTreeState",
                    "buildDate",
                    "goVersion",
                    "compiler",
                    "platform",
                ];
                let mut version: BTreeMap<&str, &str> =
                    told.into_iter().map(|key| (key, "")).collect();
                version.insert("gitVersion", "v1.35.4");
                (200, json!(version).to_string())
            }
            ("GET", "/apis") => {
                let version = json!({"groupVersion": "certificates.k8s.io/v1", "version": "v1"});
                let groups = json!([{"name": "certificates.k8s.io", "versions": [version]}]);
                (
                    200,
                    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
                        .to_string(),
                )
            }
            ("GET", "/api/v1") => {
                let eviction = json!({"name": "pods/eviction", "singularName": "", "namespaced": true, "group": "policy", "version": "v1",
                    "kind": "Eviction", "verbs": ["create"]});
                (200, json!({"kind": "APIResourceList", "groupVersion": "v1", "resources": [eviction]}).to_string())
            }
            ("GET", _) if COLLECTIONS.contains(&last) => {
                let all = kept.list(request);
                let from = request.parameter("continue").unwrap_or(0);
                let items: Vec<Value> = all
                    .iter()
                    .skip(from)
                    .take(request.parameter("limit").unwrap_or(all.len()))
                    .cloned()
                    .collect();
                let next = Some(from + items.len())
                    .filter(|next| *next < all.len())
                    .map(|next| next.to_string());
                let metadata =
                    json!({"resourceVersion": kept.version.to_string(), "continue": next});
                (200, json!({"kind": "List", "apiVersion": "v1", "metadata": metadata, "items": items}).to_string())
            }
            ("GET", _) => kept.get(path).map_or_else(
                || status(404, "not found", &Value::Null),
                |object| (200, object.to_string()),
            ),
            ("POST", _) if last == "eviction" => kept.delete(
                path.trim_end_matches("/eviction"),
                &request.body["deleteOptions"]["preconditions"]["uid"],
            ),
            ("POST", _) if path.starts_with("/apis/authorization.k8s.io/") => {
                let asked = &request.body["spec"]["resourceAttributes"];
                let text = |key: &str| asked[key].as_str().unwrap_or_default();
                let part = if text("subresource").is_empty() {
                    String::new()
                } else {
                    format!("/{}", text("subresource"))
                };
                let allowed =
                    !self
                        .denied
                        .contains(&format!("{} {}{part}", text("verb"), text("resource")));
                let mut review = request.body.clone();
                review["status"] = json!({"allowed": allowed});
                (201, review.to_string())
            }
            ("POST", _) => {
                let at = format!(
                    "{path}/{}",
                    request.body["metadata"]["name"].as_str().unwrap()
                );
                if kept.get(&at).is_some() {
                    return status(409, "it already exists", &Value::Null);
                }
                kept.put(&at, stored(&request.body));
                (201, kept.objects[&at].to_string())
            }
            ("PUT", _) => kept.update(path.trim_end_matches("/approval"), &request.body),
            ("PATCH", _) => kept.update(path, &request.body),
            ("DELETE", _) => kept.delete(path, &request.body["preconditions"]["uid"]),
            _ => status(405, "no such verb", &Value::Null),
        }
    }
}

/// A Secret's text is kept coded.
fn stored(object: &Value) -> Value {
    use base64::Engine as _;
    let mut object = object.clone();
    for (key, text) in object["stringData"]
        .as_object()
        .cloned()
        .unwrap_or_default()
    {
        object["data"][key] =
            json!(base64::engine::general_purpose::STANDARD.encode(text.as_str().unwrap()));
    }
    object.as_object_mut().unwrap().remove("stringData");
    object["metadata"]["creationTimestamp"] = json!(
        jiff::Timestamp::now()
            .strftime("%Y-%m-%dT%H:%M:%SZ")
            .to_string()
    );
    object
}
