//! Bootstrap tokens (the seed's chapters 3, 4 and 6): `id.secret`, kept in a Secret of kube-system.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, DeleteParams, ListParams, PostParams};

use super::{CLUSTER_ANNOTATION, Cluster, MANAGED_BY, NODE_ANNOTATION, absent_as_none, within};
use crate::error::{Error, Result};

const ALPHABET: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";
const TYPE: &str = "bootstrap.kubernetes.io/token";

/// `[a-z0-9]{6}.[a-z0-9]{16}`. Its secret half cannot be printed.
#[derive(Clone)]
pub struct Token {
    pub id: String,
    secret: String,
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.<secret>", self.id)
    }
}

impl Token {
    /// From the system's random source, every character equally likely.
    pub fn generate() -> Result<Self> {
        Ok(Self { id: random(6)?, secret: random(16)? })
    }

    /// The token itself, for the one file that needs it.
    pub fn reveal(&self) -> String {
        format!("{}.{}", self.id, self.secret)
    }

    pub fn user(&self) -> String {
        user(&self.id)
    }

    fn secret_name(&self) -> String {
        format!("bootstrap-token-{}", self.id)
    }
}

/// Whom the API server takes the bearer of a token for.
pub fn user(id: &str) -> String {
    format!("system:bootstrap:{id}")
}

fn random(length: usize) -> Result<String> {
    let mut text = String::with_capacity(length);
    let mut bytes = [0_u8; 64];
    while text.len() < length {
        getrandom::fill(&mut bytes).map_err(|error| Error::new(format!("the system's random source failed: {error}")))?;
        // 252 is the largest multiple of 36 below 256: bytes above it would favour the first letters.
        text.extend(
            bytes.iter().filter(|byte| **byte < 252).take(length - text.len()).map(|byte| char::from(ALPHABET[usize::from(byte % 36)])),
        );
    }
    Ok(text)
}

impl Cluster {
    fn tokens(&self) -> Api<Secret> {
        Api::namespaced(self.client.clone(), "kube-system")
    }

    /// Stores a token for one node: authentication only, a short life, `groups` besides `system:bootstrappers`.
    pub async fn create_token(&self, token: &Token, cluster: &str, node: &str, life: Duration, groups: &[String]) -> Result<()> {
        let expiration = jiff::Timestamp::now() + jiff::SignedDuration::try_from(life).unwrap_or(jiff::SignedDuration::from_mins(10));
        // Kubernetes wants RFC 3339 without fractions here.
        let expiration = expiration.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let mut data = BTreeMap::from([
            ("token-id".to_owned(), token.id.clone()),
            ("token-secret".to_owned(), token.secret.clone()),
            ("usage-bootstrap-authentication".to_owned(), "true".to_owned()),
            ("description".to_owned(), format!("nodegraft: node {node} joins")),
            ("expiration".to_owned(), expiration),
        ]);
        if !groups.is_empty() {
            data.insert("auth-extra-groups".to_owned(), groups.join(","));
        }
        let secret = Secret {
            metadata: ObjectMeta {
                name: Some(token.secret_name()),
                labels: Some(BTreeMap::from([(MANAGED_BY.0.to_owned(), MANAGED_BY.1.to_owned())])),
                annotations: Some(annotations(cluster, node)),
                ..ObjectMeta::default()
            },
            type_: Some(TYPE.to_owned()),
            string_data: Some(data),
            ..Secret::default()
        };
        within(format!("creating the token {}", token.id), self.tokens().create(&PostParams::default(), &secret)).await.map(drop)
    }

    /// False if it was gone already.
    pub async fn delete_token(&self, id: &str) -> Result<bool> {
        let name = format!("bootstrap-token-{id}");
        within(format!("deleting the token {id}"), async {
            absent_as_none(self.tokens().delete(&name, &DeleteParams::default()).await).map(|found| found.is_some())
        })
        .await
    }

    pub async fn token_exists(&self, id: &str) -> Result<bool> {
        within(format!("looking for the token {id}"), self.tokens().get_opt(&format!("bootstrap-token-{id}"))).await.map(|t| t.is_some())
    }

    /// Ids of the tokens we made for a node and that are still there.
    pub async fn tokens_of(&self, cluster: &str, node: &str) -> Result<Vec<String>> {
        let ours = ListParams::default().labels(&format!("{}={}", MANAGED_BY.0, MANAGED_BY.1)).fields(&format!("type={TYPE}"));
        let found = within("listing the bootstrap tokens", self.tokens().list(&ours)).await?;
        let wanted = annotations(cluster, node);
        Ok(found
            .into_iter()
            .filter(|secret| wanted.iter().all(|(key, value)| secret.metadata.annotations.as_ref().and_then(|a| a.get(key)) == Some(value)))
            .filter_map(|secret| secret.metadata.name?.strip_prefix("bootstrap-token-").map(str::to_owned))
            .collect())
    }
}

pub(super) fn annotations(cluster: &str, node: &str) -> BTreeMap<String, String> {
    BTreeMap::from([(CLUSTER_ANNOTATION.to_owned(), cluster.to_owned()), (NODE_ANNOTATION.to_owned(), node.to_owned())])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_have_the_form_that_kubernetes_demands_and_hide_their_secret() {
        let token = Token::generate().unwrap();
        let text = token.reveal();
        let (id, secret) = text.split_once('.').unwrap();
        assert_eq!((id.len(), secret.len()), (6, 16));
        assert!(text.chars().all(|c| c == '.' || ALPHABET.contains(&(c as u8))));
        assert!(!format!("{token:?}").contains(secret));
        assert_ne!(text, Token::generate().unwrap().reveal());
    }
}
