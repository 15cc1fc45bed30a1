//! Certificate signing requests, in whichever API version the cluster serves (v1, or v1beta1 before 1.19).
//! What may be approved is decided here: the client certificate of a node, asked for with the token minted for it, and,
//! where that is wanted, the serving certificate of a node for its own name and address.

use std::net::IpAddr;

use kube::api::{Api, DynamicObject, ListParams, PostParams};
use kube::core::{ApiResource, GroupVersionKind};
use serde_json::{Value, json};
use x509_cert::der::{Decode, DecodePem};
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::request::{CertReq, ExtensionReq};

use super::Cluster;
use super::call::{PATIENCE, delete, insist, within};
use super::error::is_forbidden;
use super::list::list;
use super::token::user;
use super::watch::watch_until;
use crate::core::error::{Error, Result};

pub const CLIENT_SIGNER: &str = "kubernetes.io/kube-apiserver-client-kubelet";
pub const SERVING_SIGNER: &str = "kubernetes.io/kubelet-serving";

/// A request, as far as approval needs to know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    pub name: String,
    pub uid: String,
    pub requestor: String,
    pub signer: Option<String>,
    pub usages: Vec<String>,
    /// The subject of the PKCS#10 inside, as `O=system:nodes, CN=system:node:x`; empty if it does not parse.
    pub organizations: Vec<String>,
    pub common_name: String,
    pub names: AlternativeNames,
    pub state: State,
    /// What whoever approved it said.
    pub message: Option<String>,
}

/// The subject alternative names that a request asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AlternativeNames {
    pub dns: Vec<String>,
    pub addresses: Vec<IpAddr>,
    /// There are others, such as an e-mail address, or some that do not parse.
    pub others: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    Pending,
    Approved,
    Issued,
    Denied(String),
}

impl Request {
    /// Why this is not the request of `node`'s kubelet made as `user`, or `None` if it is exactly that.
    pub fn objection(&self, user: &str, node: &str) -> Option<String> {
        if let Some(objection) = self.subject_objection(user, node) {
            return Some(objection);
        }
        if self
            .signer
            .as_deref()
            .is_some_and(|signer| signer != CLIENT_SIGNER)
        {
            return Some(format!(
                "its signer is {}",
                self.signer.as_deref().unwrap_or_default()
            ));
        }
        if self.names != AlternativeNames::default() {
            return Some("it asks for alternative names".to_owned());
        }
        self.usage_objection("client auth")
    }

    /// Why this is not the request of `node`'s own kubelet for a certificate to serve with under its own name and address.
    pub fn serving_objection(&self, node: &str, hostname: &str, ip: IpAddr) -> Option<String> {
        if let Some(objection) = self.subject_objection(&format!("system:node:{node}"), node) {
            return Some(objection);
        }
        if self.signer.as_deref() != Some(SERVING_SIGNER) {
            return Some(format!(
                "its signer is {}",
                self.signer.as_deref().unwrap_or("not given")
            ));
        }
        let foreign = self
            .names
            .dns
            .iter()
            .find(|name| *name != node && *name != hostname)
            .cloned();
        let foreign = foreign.or_else(|| {
            self.names
                .addresses
                .iter()
                .find(|address| **address != ip)
                .map(ToString::to_string)
        });
        if let Some(foreign) = foreign {
            return Some(format!(
                "it asks for {foreign}, which is neither the node's name nor its address"
            ));
        }
        if self.names.others {
            return Some("it asks for alternative names of an unusual kind".to_owned());
        }
        if self.names == AlternativeNames::default() {
            return Some("it asks for no name at all".to_owned());
        }
        self.usage_objection("server auth")
    }

    fn is_of(&self, node: &str, token_ids: &[String], node_is_ours: bool) -> bool {
        token_ids.iter().any(|id| self.requestor == user(id))
            || (node_is_ours && self.requestor == format!("system:node:{node}"))
    }

    fn subject_objection(&self, user: &str, node: &str) -> Option<String> {
        if self.requestor != user {
            return Some(format!("it was made by {}, not {user}", self.requestor));
        }
        if self.common_name != format!("system:node:{node}")
            || self.organizations != ["system:nodes"]
        {
            return Some(format!(
                "its subject is O={}, CN={}",
                self.organizations.join("+"),
                self.common_name
            ));
        }
        None
    }

    fn usage_objection(&self, wanted: &str) -> Option<String> {
        let mut usages: Vec<&str> = self.usages.iter().map(String::as_str).collect();
        usages.sort_unstable();
        // Kubelets with an elliptic key leave out key encipherment.
        let usual = |more: &[&str]| {
            let mut all = [&["digital signature", wanted], more].concat();
            all.sort_unstable();
            usages == all
        };
        if usual(&["key encipherment"]) || usual(&[]) {
            None
        } else {
            Some(format!("its usages are {}", self.usages.join(", ")))
        }
    }
}

impl Cluster {
    fn requests(&self) -> Api<DynamicObject> {
        let kind = GroupVersionKind::gvk(
            "certificates.k8s.io",
            &self.certificates,
            "CertificateSigningRequest",
        );
        Api::all_with(
            self.client.clone(),
            &ApiResource::from_gvk_with_plural(&kind, "certificatesigningrequests"),
        )
    }

    pub async fn csrs(&self) -> Result<Vec<Request>> {
        let (api, all) = (self.requests(), ListParams::default());
        Ok(list("listing the certificate requests", &api, &all)
            .await?
            .iter()
            .map(parse)
            .collect())
    }

    /// Watches until a request of `user` satisfies `until`. Has no deadline of its own.
    pub async fn watch_csr(&self, user: &str, until: impl Fn(&Request) -> bool) -> Result<Request> {
        watch_until(
            &self.requests(),
            "the certificate requests",
            None,
            |object| {
                let request = parse(&object);
                (request.requestor == user && until(&request)).then_some(request)
            },
        )
        .await
    }

    /// A node's requests for a serving certificate that nobody has decided on.
    pub async fn pending_serving(&self, node: &str) -> Result<Vec<Request>> {
        let user = format!("system:node:{node}");
        let pending = |csr: &Request| {
            csr.requestor == user
                && csr.signer.as_deref() == Some(SERVING_SIGNER)
                && csr.state == State::Pending
        };
        Ok(self.csrs().await?.into_iter().filter(pending).collect())
    }

    /// Approves exactly this request, if `objection` has nothing against what the API server shows of it at that moment. A
    /// request that somebody else decided on meanwhile is left as it is. False if we may not.
    pub async fn approve_csr(
        &self,
        request: &Request,
        message: &str,
        objection: impl Fn(&Request) -> Option<String>,
    ) -> Result<bool> {
        const TRIES: usize = 5;
        let (api, params, name) = (
            self.requests(),
            PostParams::default(),
            request.name.as_str(),
        );
        let what = format!("approving the certificate request {name}");
        let refused = |why: String| {
            Error::unfit(what.as_str())
                .because(why)
                .with_help("nothing was approved")
        };
        for _ in 0..TRIES {
            let found = within(format!("reading the certificate request {name}"), || {
                api.get_opt(name)
            })
            .await?;
            let mut object = found.ok_or_else(|| refused("it is gone".to_owned()))?;
            let seen = parse(&object);
            if seen.uid != request.uid {
                return Err(refused("another request has its name now".to_owned()));
            }
            if let Some(objection) = objection(&seen) {
                return Err(refused(objection));
            }
            if seen.state != State::Pending {
                return Ok(true);
            }
            object.data["status"]["conditions"] = json!([self.approved(message)]);
            // The version that was looked at goes along: what changed since is looked at again.
            match insist(PATIENCE, || {
                api.replace_subresource("approval", name, &params, &object)
            })
            .await
            {
                Ok(_) => return Ok(true),
                Err(failure) if failure.code() == Some(409) => {}
                Err(failure) if failure.code() == Some(403) => return Ok(false),
                Err(failure) => return Err(failure.during(what)),
            }
        }
        Err(refused("it keeps changing under our hands".to_owned()))
    }

    fn approved(&self, message: &str) -> Value {
        let mut condition =
            json!({"type": "Approved", "reason": "NodegraftApproved", "message": message});
        if self.certificates == "v1" {
            condition["status"] = json!("True");
        }
        condition
    }

    /// The requests that a node of ours made: with one of these tokens, and under the Node's own name where the caller has
    /// proved that the Node is ours.
    pub async fn requests_of(
        &self,
        node: &str,
        token_ids: &[String],
        node_is_ours: bool,
    ) -> Result<Vec<Request>> {
        Ok(self
            .csrs()
            .await?
            .into_iter()
            .filter(|request| request.is_of(node, token_ids, node_is_ours))
            .collect())
    }

    /// Deletes what `requests_of` finds, as far as we may. The names of what is gone.
    pub async fn delete_requests_of(
        &self,
        node: &str,
        token_ids: &[String],
        node_is_ours: bool,
    ) -> Result<Vec<String>> {
        let mut gone = Vec::new();
        for request in self.requests_of(node, token_ids, node_is_ours).await? {
            if self.delete_request(&request).await? {
                gone.push(request.name);
            }
        }
        Ok(gone)
    }

    /// Deletes exactly this request. False if it was gone, another bears its name now, or we may not: Kubernetes itself
    /// removes requests within a day.
    pub async fn delete_request(&self, request: &Request) -> Result<bool> {
        match delete(
            &self.requests(),
            &format!("the certificate request {}", request.name),
            &request.name,
            &request.uid,
        )
        .await
        {
            Err(error) if is_forbidden(&error) => Ok(false),
            deleted => deleted,
        }
    }
}

fn parse(object: &DynamicObject) -> Request {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let spec = &object.data["spec"];
    let status = &object.data["status"];
    let conditions = status["conditions"].as_array().cloned().unwrap_or_default();
    let has = |kind: &str| conditions.iter().find(|c| c["type"] == kind);
    let state = if let Some(denied) = has("Denied").or_else(|| has("Failed")) {
        State::Denied(text(&denied["message"]))
    } else if status["certificate"]
        .as_str()
        .is_some_and(|c| !c.is_empty())
    {
        State::Issued
    } else if has("Approved").is_some() {
        State::Approved
    } else {
        State::Pending
    };
    let (organizations, common_name, names) =
        subject(spec["request"].as_str().unwrap_or_default()).unwrap_or_default();
    Request {
        name: object.metadata.name.clone().unwrap_or_default(),
        uid: object.metadata.uid.clone().unwrap_or_default(),
        requestor: text(&spec["username"]),
        signer: spec["signerName"].as_str().map(str::to_owned),
        usages: spec["usages"]
            .as_array()
            .map(|usages| usages.iter().map(text).collect())
            .unwrap_or_default(),
        organizations,
        common_name,
        names,
        state,
        message: has("Approved")
            .and_then(|approved| approved["message"].as_str())
            .map(str::to_owned),
    }
}

/// Organizations, common name and alternative names of a base64-coded PEM request.
fn subject(base64: &str) -> Option<(Vec<String>, String, AlternativeNames)> {
    use base64::Engine as _;
    const COMMON_NAME: &str = "2.5.4.3";
    const ORGANIZATION: &str = "2.5.4.10";
    let pem = base64::engine::general_purpose::STANDARD
        .decode(base64)
        .ok()?;
    let request = CertReq::from_pem(&pem).ok()?;
    let mut organizations = Vec::new();
    let mut common_names = Vec::new();
    for attribute in request.info.subject.0.iter().flat_map(|set| set.0.iter()) {
        let value = String::from_utf8(attribute.value.value().to_vec()).ok()?;
        match attribute.oid.to_string().as_str() {
            COMMON_NAME => common_names.push(value),
            ORGANIZATION => organizations.push(value),
            other => organizations.push(format!("{other}={value}")),
        }
    }
    let names = alternative_names(&request).unwrap_or(AlternativeNames {
        others: true,
        ..AlternativeNames::default()
    });
    Some((organizations, common_names.join("+"), names))
}

/// `None` if they do not parse.
fn alternative_names(request: &CertReq) -> Option<AlternativeNames> {
    const EXTENSIONS: &str = "1.2.840.113549.1.9.14";
    const SUBJECT_ALTERNATIVE_NAME: &str = "2.5.29.17";
    let mut names = AlternativeNames::default();
    for attribute in request
        .info
        .attributes
        .iter()
        .filter(|attribute| attribute.oid.to_string() == EXTENSIONS)
    {
        for value in attribute.values.iter() {
            let extensions: ExtensionReq = value.decode_as().ok()?;
            for extension in extensions
                .0
                .iter()
                .filter(|extension| extension.extn_id.to_string() == SUBJECT_ALTERNATIVE_NAME)
            {
                for name in SubjectAltName::from_der(extension.extn_value.as_bytes())
                    .ok()?
                    .0
                {
                    match name {
                        GeneralName::DnsName(name) => names.dns.push(name.to_string()),
                        GeneralName::IpAddress(bytes) => {
                            names.addresses.push(address(bytes.as_bytes())?)
                        }
                        _ => names.others = true,
                    }
                }
            }
        }
    }
    Some(names)
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> Request {
        Request {
            name: "node-csr-x".into(),
            uid: "u1".into(),
            requestor: "system:bootstrap:abcdef".into(),
            signer: Some(CLIENT_SIGNER.into()),
            usages: ["digital signature", "key encipherment", "client auth"]
                .map(str::to_owned)
                .into(),
            organizations: vec!["system:nodes".into()],
            common_name: "system:node:n1".into(),
            names: AlternativeNames::default(),
            state: State::Pending,
            message: None,
        }
    }

    #[test]
    fn requests_of_others_are_never_ours() {
        let by = |requestor: &str, ids: &[&str], proved: bool| {
            let ids: Vec<String> = ids.iter().map(|id| (*id).to_owned()).collect();
            Request {
                requestor: requestor.into(),
                ..request()
            }
            .is_of("n1", &ids, proved)
        };
        assert!(by("system:bootstrap:abcdef", &["zzzzzz", "abcdef"], false));
        assert!(
            !by("system:bootstrap:abcdef", &["zzzzzz"], true),
            "the subject says n1, but its token is none of ours"
        );
        assert!(by("system:node:n1", &[], true));
        assert!(
            !by("system:node:n1", &["abcdef"], false),
            "the Node may be another machine's"
        );
        assert!(!by("system:node:n2", &[], true));
        assert!(!by("system:serviceaccount:kube-system:n1", &[], true));
    }

    #[test]
    fn only_the_exact_request_is_approved() {
        let objection = |change: fn(&mut Request)| {
            let mut request = request();
            change(&mut request);
            request.objection("system:bootstrap:abcdef", "n1")
        };
        assert_eq!(objection(|_| ()), None);
        assert_eq!(
            objection(|r| r.usages.retain(|u| u != "key encipherment")),
            None
        );
        let wrong: [fn(&mut Request); 9] = [
            |r| r.names.dns.push("n1".into()),
            |r| r.requestor = "system:bootstrap:zzzzzz".into(),
            |r| r.requestor = "system:node:n1".into(),
            |r| r.common_name = "system:node:n2".into(),
            |r| r.organizations = vec!["system:masters".into()],
            |r| r.organizations.push("system:masters".into()),
            |r| r.usages.push("server auth".into()),
            |r| r.usages.clear(),
            |r| r.signer = Some("kubernetes.io/kube-apiserver-client".into()),
        ];
        for change in wrong {
            assert!(objection(change).is_some());
        }
    }

    #[test]
    fn only_a_nodes_own_name_and_address_are_served() {
        let own: IpAddr = "192.168.3.104".parse().unwrap();
        let objection = |change: fn(&mut Request)| {
            let mut request = Request {
                requestor: "system:node:n1".into(),
                signer: Some(SERVING_SIGNER.into()),
                usages: ["digital signature", "server auth"]
                    .map(str::to_owned)
                    .into(),
                names: AlternativeNames {
                    dns: vec!["n1".into()],
                    addresses: vec!["192.168.3.104".parse().unwrap()],
                    others: false,
                },
                ..request()
            };
            change(&mut request);
            request.serving_objection("n1", "node-1", own)
        };
        assert_eq!(objection(|_| ()), None);
        assert_eq!(objection(|r| r.names.dns = vec!["node-1".into()]), None);
        assert_eq!(objection(|r| r.names.dns.clear()), None);
        let wrong: [fn(&mut Request); 8] = [
            |r| r.names.dns.push("kubernetes.default.svc".into()),
            |r| r.names.addresses.push("192.168.3.101".parse().unwrap()),
            |r| r.names.others = true,
            |r| r.names = AlternativeNames::default(),
            |r| r.requestor = "system:node:n2".into(),
            |r| r.signer = Some(CLIENT_SIGNER.into()),
            |r| r.usages.push("client auth".into()),
            |r| r.common_name = "system:node:n2".into(),
        ];
        for change in wrong {
            assert!(objection(change).is_some());
        }
    }
}
