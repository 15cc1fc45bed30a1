//! Certificate signing requests, in whichever API version the cluster serves (v1, or v1beta1 before 1.19).
//! Approves one request only: the client certificate of the node it was told about, asked for with the token it minted.

use kube::api::{Api, DeleteParams, DynamicObject, ListParams, PostParams};
use kube::core::{ApiResource, GroupVersionKind};
use serde_json::{Value, json};
use x509_cert::der::DecodePem;
use x509_cert::request::CertReq;

use super::{Cluster, absent_as_none, code, watch_until, within};
use crate::error::{Context, Error, Result};

pub const CLIENT_SIGNER: &str = "kubernetes.io/kube-apiserver-client-kubelet";

/// A request, as far as approval needs to know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    pub name: String,
    pub requestor: String,
    pub signer: Option<String>,
    pub usages: Vec<String>,
    /// The subject of the PKCS#10 inside, as `O=system:nodes, CN=system:node:x`; empty if it does not parse.
    pub organizations: Vec<String>,
    pub common_name: String,
    pub state: State,
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
        if self.requestor != user {
            return Some(format!("it was made by {}, not {user}", self.requestor));
        }
        if self.common_name != format!("system:node:{node}") || self.organizations != ["system:nodes"] {
            return Some(format!("its subject is O={}, CN={}", self.organizations.join("+"), self.common_name));
        }
        if self.signer.as_deref().is_some_and(|signer| signer != CLIENT_SIGNER) {
            return Some(format!("its signer is {}", self.signer.as_deref().unwrap_or_default()));
        }
        let mut usages: Vec<&str> = self.usages.iter().map(String::as_str).collect();
        usages.sort_unstable();
        // Kubelets with an elliptic key leave out key encipherment.
        if usages != ["client auth", "digital signature", "key encipherment"] && usages != ["client auth", "digital signature"] {
            return Some(format!("its usages are {}", self.usages.join(", ")));
        }
        None
    }
}

impl Cluster {
    fn requests(&self) -> Api<DynamicObject> {
        let kind = GroupVersionKind::gvk("certificates.k8s.io", &self.certificates, "CertificateSigningRequest");
        Api::all_with(self.client.clone(), &ApiResource::from_gvk_with_plural(&kind, "certificatesigningrequests"))
    }

    pub async fn csrs(&self) -> Result<Vec<Request>> {
        let list = within("listing the certificate requests", self.requests().list(&ListParams::default())).await?;
        Ok(list.items.iter().map(parse).collect())
    }

    /// Watches until a request of `user` satisfies `until`.
    pub async fn watch_csr(&self, user: &str, until: impl Fn(&Request) -> bool) -> Result<Request> {
        watch_until(&self.requests(), "the certificate requests", None, |object| {
            let request = parse(&object);
            (request.requestor == user && until(&request)).then_some(request)
        })
        .await
    }

    /// Approves a request by name; the caller has had it checked by [`Request::objection`]. A request that somebody
    /// else approved or changed meanwhile is left as it is.
    pub async fn approve_csr(&self, name: &str, message: &str) -> Result<()> {
        let api = self.requests();
        for _ in 0..3 {
            let mut object = within(format!("reading the certificate request {name}"), api.get(name)).await?;
            if parse(&object).state != State::Pending {
                return Ok(());
            }
            let mut condition = json!({"type": "Approved", "reason": "NodegraftApproved", "message": message});
            if self.certificates == "v1" {
                condition["status"] = json!("True");
            }
            object.data["status"]["conditions"] = json!([condition]);
            match api.replace_subresource("approval", name, &PostParams::default(), &object).await {
                Ok(_) => return Ok(()),
                Err(error) if code(&error) == Some(409) => {}
                Err(error) => return Err(error).doing(format!("approving the certificate request {name}")),
            }
        }
        Err(Error::new(format!("the certificate request {name} keeps changing under our hands")))
    }

    /// Deletes the requests of one node: those whose subject it is and that it, or a token, made. Returns their names.
    pub async fn delete_csrs_of(&self, node: &str) -> Result<Vec<String>> {
        let subject = format!("system:node:{node}");
        let mut deleted = Vec::new();
        for request in self.csrs().await? {
            let theirs = request.requestor == subject || request.requestor.starts_with("system:bootstrap:");
            if request.common_name == subject && theirs {
                let gone = within(format!("deleting the certificate request {}", request.name), async {
                    absent_as_none(self.requests().delete(&request.name, &DeleteParams::default()).await)
                });
                if gone.await?.is_some() {
                    deleted.push(request.name);
                }
            }
        }
        Ok(deleted)
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
    } else if status["certificate"].as_str().is_some_and(|c| !c.is_empty()) {
        State::Issued
    } else if has("Approved").is_some() {
        State::Approved
    } else {
        State::Pending
    };
    let (organizations, common_name) = subject(spec["request"].as_str().unwrap_or_default()).unwrap_or_default();
    Request {
        name: object.metadata.name.clone().unwrap_or_default(),
        requestor: text(&spec["username"]),
        signer: spec["signerName"].as_str().map(str::to_owned),
        usages: spec["usages"].as_array().map(|usages| usages.iter().map(text).collect()).unwrap_or_default(),
        organizations,
        common_name,
        state,
    }
}

/// Organizations and common name of a base64-coded PEM request.
fn subject(base64: &str) -> Option<(Vec<String>, String)> {
    use base64::Engine as _;
    const COMMON_NAME: &str = "2.5.4.3";
    const ORGANIZATION: &str = "2.5.4.10";
    let pem = base64::engine::general_purpose::STANDARD.decode(base64).ok()?;
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
    Some((organizations, common_names.join("+")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> Request {
        Request {
            name: "node-csr-x".into(),
            requestor: "system:bootstrap:abcdef".into(),
            signer: Some(CLIENT_SIGNER.into()),
            usages: ["digital signature", "key encipherment", "client auth"].map(str::to_owned).into(),
            organizations: vec!["system:nodes".into()],
            common_name: "system:node:n1".into(),
            state: State::Pending,
        }
    }

    #[test]
    fn only_the_exact_request_is_approved() {
        let objection = |change: fn(&mut Request)| {
            let mut request = request();
            change(&mut request);
            request.objection("system:bootstrap:abcdef", "n1")
        };
        assert_eq!(objection(|_| ()), None);
        assert_eq!(objection(|r| r.usages.retain(|u| u != "key encipherment")), None);
        let wrong: [fn(&mut Request); 8] = [
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
}
