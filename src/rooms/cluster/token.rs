//! Bootstrap tokens: `id.secret`, kept in a Secret of kube-system.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, ListParams, PostParams};
use serde::Serialize;

use super::call::{PATIENCE, delete, insist, within};
use super::list::list;
use super::{Cluster, MANAGED_BY, annotations, is_managed, owner};
use crate::core::diagnosis::TokenState;
use crate::core::error::{Error, Result};
use crate::core::ownership::Owner;
use crate::core::random;

const ALPHABET: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";
const NAMESPACE: &str = "kube-system";
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
        Ok(Self {
            id: random(6)?,
            secret: random(16)?,
        })
    }

    /// `[a-z0-9]{6}.[a-z0-9]{16}`, and nothing else.
    pub fn parse(text: &str) -> Result<Self> {
        let well = |part: &str, length: usize| {
            part.len() == length && part.bytes().all(|byte| ALPHABET.contains(&byte))
        };
        match text.split_once('.') {
            Some((id, secret)) if well(id, 6) && well(secret, 16) => Ok(Self { id: id.to_owned(), secret: secret.to_owned() }),
            _ => Err(Error::usage("this is not a bootstrap token")
                .with_help(
                    "a token is six and sixteen lower-case letters or digits with a dot between; `nodegraft token generate` makes one",
                )),
        }
    }

    /// The id of a token, or of what is an id already.
    pub fn id_of(text: &str) -> Result<String> {
        if text.len() == 6 && text.bytes().all(|byte| ALPHABET.contains(&byte)) {
            Ok(text.to_owned())
        } else {
            Self::parse(text).map(|token| token.id)
        }
    }

    /// The token itself, for the one file that needs it.
    pub fn reveal(&self) -> String {
        format!("{}.{}", self.id, self.secret)
    }

    pub fn user(&self) -> String {
        user(&self.id)
    }

    fn secret_name(&self) -> String {
        secret_name(&self.id)
    }
}

fn secret_name(id: &str) -> String {
    format!("bootstrap-token-{id}")
}

/// Whom the API server takes the bearer of a token for.
pub fn user(id: &str) -> String {
    format!("system:bootstrap:{id}")
}

fn random(length: usize) -> Result<String> {
    let mut text = String::with_capacity(length);
    let mut bytes = [0_u8; 64];
    while text.len() < length {
        random::fill(&mut bytes)?;
        // 252 is the largest multiple of 36 below 256: bytes above it would favour the first letters.
        text.extend(
            bytes
                .iter()
                .filter(|byte| **byte < 252)
                .take(length - text.len())
                .map(|byte| char::from(ALPHABET[usize::from(byte % 36)])),
        );
    }
    Ok(text)
}

/// What a token is stored with.
#[derive(Debug, Clone, Default)]
pub struct Terms {
    /// `None` lives for ever.
    pub life: Option<Duration>,
    pub description: Option<String>,
    /// Besides `system:bootstrappers`; each starts with `system:bootstrappers:`.
    pub groups: Vec<String>,
    pub authentication: bool,
    pub signing: bool,
    /// The node of ours that it was minted for.
    pub node: Option<Owner>,
}

/// A token that was minted for a node of ours, of this cluster or another, on this host or another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OurToken {
    pub id: String,
    /// Of its Secret.
    pub uid: String,
    pub name: String,
    /// Seconds since 1970, by the API server's clock.
    pub created: i64,
    /// Seconds since 1970; `None` lives for ever.
    pub expires: Option<i64>,
    pub owner: Owner,
}

/// A token as the cluster has it.
#[derive(Debug, Clone, Serialize)]
pub struct Listed {
    pub id: String,
    /// Only where asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret: Option<String>,
    pub expiration: Option<String>,
    pub usages: Vec<String>,
    pub description: String,
    pub groups: Vec<String>,
}

/// Kubernetes' rule for the extra groups of a token.
pub fn check_group(group: &str) -> Result<()> {
    let rest = group
        .strip_prefix("system:bootstrappers:")
        .unwrap_or_default();
    let edge = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    if rest.ends_with(edge) && rest.chars().all(|c| edge(c) || c == ':' || c == '-') {
        return Ok(());
    }
    Err(Error::usage(format!("`{group}` cannot be a token's group"))
        .with_help("it must start with `system:bootstrappers:` and go on with lower-case letters, digits, `:` and `-`"))
}

impl Token {
    /// The Secret that Kubernetes keeps a token in.
    pub fn secret(&self, terms: &Terms) -> Secret {
        let mut data = BTreeMap::from([
            ("token-id".to_owned(), self.id.clone()),
            ("token-secret".to_owned(), self.secret.clone()),
        ]);
        let mut set = |key: &str, value: Option<String>| {
            value.map(|value| data.insert(key.to_owned(), value))
        };
        set(
            "usage-bootstrap-authentication",
            terms.authentication.then(|| "true".to_owned()),
        );
        set(
            "usage-bootstrap-signing",
            terms.signing.then(|| "true".to_owned()),
        );
        set("description", terms.description.clone());
        set("expiration", terms.life.map(expiration));
        set(
            "auth-extra-groups",
            (!terms.groups.is_empty()).then(|| terms.groups.join(",")),
        );
        let ours = terms.node.as_ref();
        Secret {
            metadata: ObjectMeta {
                name: Some(self.secret_name()),
                namespace: Some(NAMESPACE.to_owned()),
                labels: ours
                    .map(|_| BTreeMap::from([(MANAGED_BY.0.to_owned(), MANAGED_BY.1.to_owned())])),
                annotations: ours.map(annotations),
                ..ObjectMeta::default()
            },
            type_: Some(TYPE.to_owned()),
            string_data: Some(data),
            ..Secret::default()
        }
    }
}

/// RFC 3339 without fractions, as Kubernetes wants it here.
fn expiration(life: Duration) -> String {
    let life = jiff::SignedDuration::try_from(life).unwrap_or(jiff::SignedDuration::from_mins(10));
    (jiff::Timestamp::now() + life)
        .strftime("%Y-%m-%dT%H:%M:%SZ")
        .to_string()
}

impl Cluster {
    fn tokens(&self) -> Api<Secret> {
        Api::namespaced(self.client.clone(), NAMESPACE)
    }

    /// Returns the API server's own clock, in seconds since 1970.
    pub async fn create_token(&self, token: &Token, terms: &Terms) -> Result<Option<i64>> {
        let what = format!("creating the token {}", token.id);
        let (api, params, name, wanted) = (
            self.tokens(),
            PostParams::default(),
            token.secret_name(),
            token.secret(terms),
        );
        let made = match insist(PATIENCE, || api.create(&params, &wanted)).await {
            Ok(made) => made,
            // An earlier try may have made it, though its answer was lost: nobody else knows its secret half.
            Err(failure) if failure.code() == Some(409) => {
                let found = within(what.as_str(), || api.get_opt(&name)).await?;
                match found.filter(|found| is_stored(found, &token.secret, terms)) {
                    Some(found) => found,
                    None => return Err(failure.during(what)),
                }
            }
            Err(failure) => return Err(failure.during(what)),
        };
        Ok(made
            .metadata
            .creation_timestamp
            .map(|time| time.0.as_second()))
    }

    pub async fn list_tokens(&self, secrets: bool) -> Result<Vec<Listed>> {
        let (api, all) = (
            self.tokens(),
            ListParams::default().fields(&format!("type={TYPE}")),
        );
        let found = list("listing the bootstrap tokens", &api, &all).await?;
        Ok(found
            .into_iter()
            .map(|secret| listed(&secret, secrets))
            .collect())
    }

    /// Deletes the token of that id, whoever made it: for who asked for exactly that. False if it was gone already.
    pub async fn delete_token(&self, id: &str) -> Result<bool> {
        let (api, name) = (self.tokens(), secret_name(id));
        let found = within(format!("looking for the token {id}"), || api.get_opt(&name)).await?;
        match found.and_then(|secret| secret.metadata.uid) {
            Some(uid) => delete(&api, &format!("the token {id}"), &name, &uid).await,
            None => Ok(false),
        }
    }

    pub async fn token_state(&self, id: &str) -> Result<TokenState> {
        let (api, name) = (self.tokens(), secret_name(id));
        let found = within(format!("looking for the token {id}"), || api.get_opt(&name)).await?;
        let Some(secret) = found else {
            return Ok(TokenState::Gone);
        };
        Ok(
            if expires(&secret).is_some_and(|at| at <= jiff::Timestamp::now()) {
                TokenState::Expired
            } else {
                TokenState::Alive
            },
        )
    }

    /// The tokens that nodegraft minted for nodes and that are still there. Whose they are, their owner says.
    pub async fn our_tokens(&self) -> Result<Vec<OurToken>> {
        let ours = ListParams::default()
            .labels(&format!("{}={}", MANAGED_BY.0, MANAGED_BY.1))
            .fields(&format!("type={TYPE}"));
        let api = self.tokens();
        let found = list("listing the bootstrap tokens", &api, &ours).await?;
        Ok(found.iter().filter_map(our_token).collect())
    }

    /// Deletes exactly this token. False if it was gone, or another bears its name now.
    pub async fn delete_token_of(&self, token: &OurToken) -> Result<bool> {
        delete(
            &self.tokens(),
            &format!("the token {}", token.id),
            &token.name,
            &token.uid,
        )
        .await
    }
}

/// `None` for a token that does not say whose it is.
fn our_token(secret: &Secret) -> Option<OurToken> {
    let meta = &secret.metadata;
    if !is_managed(meta.labels.as_ref()) {
        return None;
    }
    let name = meta.name.clone()?;
    Some(OurToken {
        id: name.strip_prefix("bootstrap-token-")?.to_owned(),
        uid: meta.uid.clone()?,
        created: meta
            .creation_timestamp
            .as_ref()
            .map_or(0, |time| time.0.as_second()),
        expires: expires(secret).map(|at| at.as_second()),
        owner: owner(meta.annotations.as_ref())?,
        name,
    })
}

/// When a token ends.
fn expires(secret: &Secret) -> Option<jiff::Timestamp> {
    listed(secret, false).expiration?.parse().ok()
}

/// Whether a Secret holds exactly the token that was to be made, for the same node.
fn is_stored(found: &Secret, secret: &str, terms: &Terms) -> bool {
    let stored = found
        .data
        .as_ref()
        .and_then(|data| data.get("token-secret"));
    stored.is_some_and(|stored| stored.0 == secret.as_bytes())
        && owner(found.metadata.annotations.as_ref()) == terms.node
}

fn listed(secret: &Secret, with_secret: bool) -> Listed {
    let data = secret.data.clone().unwrap_or_default();
    let text = |key: &str| {
        data.get(key)
            .map(|value| String::from_utf8_lossy(&value.0).into_owned())
    };
    let used = |usage: &str| text(&format!("usage-bootstrap-{usage}")).as_deref() == Some("true");
    Listed {
        id: text("token-id").unwrap_or_default(),
        secret: text("token-secret").filter(|_| with_secret),
        expiration: text("expiration"),
        usages: ["authentication", "signing"]
            .into_iter()
            .filter(|usage| used(usage))
            .map(str::to_owned)
            .collect(),
        description: text("description").unwrap_or_default(),
        groups: text("auth-extra-groups")
            .unwrap_or_default()
            .split(',')
            .filter(|group| !group.is_empty())
            .map(str::to_owned)
            .collect(),
    }
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
        assert!(
            text.chars()
                .all(|c| c == '.' || ALPHABET.contains(&(c as u8)))
        );
        assert!(!format!("{token:?}").contains(secret));
        assert_ne!(text, Token::generate().unwrap().reveal());
    }

    #[test]
    fn only_well_formed_tokens_are_read() {
        assert_eq!(
            Token::parse("398c7c.b18a35f794625922").unwrap().user(),
            "system:bootstrap:398c7c"
        );
        assert_eq!(Token::id_of("398c7c").unwrap(), "398c7c");
        for bad in [
            "",
            "398c7c",
            "398c7c.b18a",
            "398C7C.b18a35f794625922",
            "398c7c.b18a35f794625922x",
            "398c7-.b18a35f794625922",
        ] {
            assert!(Token::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn groups_must_be_bootstrappers() {
        assert!(check_group("system:bootstrappers:kubeadm:default-node-token").is_ok());
        for bad in [
            "system:masters",
            "system:bootstrappers",
            "system:bootstrappers:",
            "system:bootstrappers:A",
            "system:bootstrappers:a:",
        ] {
            assert!(check_group(bad).is_err(), "{bad}");
        }
    }

    /// The Secret that Kubernetes documents for a bootstrap token.
    #[test]
    fn a_token_is_stored_as_the_seed_stores_it() {
        let terms = Terms {
            authentication: true,
            signing: true,
            ..Terms::default()
        };
        let secret = serde_json::to_value(
            Token::parse("398c7c.b18a35f794625922")
                .unwrap()
                .secret(&terms),
        )
        .unwrap();
        let expected = serde_json::json!({
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "bootstrap-token-398c7c", "namespace": "kube-system"},
            "type": "bootstrap.kubernetes.io/token",
            "stringData": {
                "token-id": "398c7c",
                "token-secret": "b18a35f794625922",
                "usage-bootstrap-authentication": "true",
                "usage-bootstrap-signing": "true",
            },
        });
        assert_eq!(secret, expected);
    }
}
