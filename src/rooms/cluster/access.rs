//! What the bearers of our tokens may do, asked of the API server itself.

use std::collections::BTreeMap;

use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec, SubjectAccessReview,
    SubjectAccessReviewSpec,
};
use k8s_openapi::api::rbac::v1::{ClusterRoleBinding, RoleRef, Subject};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, ListParams, PostParams};

use super::call::{PATIENCE, delete, insist, within};
use super::error::is_forbidden;
use super::list::list;
use super::{CLUSTER_ANNOTATION, Cluster, MANAGED_BY, is_managed};
use crate::core::error::{Error, Result, one_line};
use crate::core::ownership::{Bound, bound};

/// Every node with a certificate is in it.
pub const NODES: &str = "system:nodes";
/// Every bearer of a bootstrap token is in it.
pub const BOOTSTRAPPERS: &str = "system:bootstrappers";

/// Something one may do with certificate requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Right {
    /// Ask for a certificate: create certificatesigningrequests.
    Request,
    /// Have one's first client request approved by the controller manager.
    ClientApproval,
    /// Have one's renewals approved: without it a node drops out when its first certificate ends.
    RenewalApproval,
}

impl Right {
    /// The built-in ClusterRole that carries it.
    pub fn role(self) -> &'static str {
        match self {
            Self::Request => "system:node-bootstrapper",
            Self::ClientApproval => {
                "system:certificates.k8s.io:certificatesigningrequests:nodeclient"
            }
            Self::RenewalApproval => {
                "system:certificates.k8s.io:certificatesigningrequests:selfnodeclient"
            }
        }
    }

    fn attributes(self) -> ResourceAttributes {
        ResourceAttributes {
            group: Some("certificates.k8s.io".into()),
            resource: Some("certificatesigningrequests".into()),
            subresource: match self {
                Self::Request => None,
                Self::ClientApproval => Some("nodeclient".into()),
                Self::RenewalApproval => Some("selfnodeclient".into()),
            },
            verb: Some("create".into()),
            ..ResourceAttributes::default()
        }
    }
}

impl Cluster {
    /// Whether a member of `groups` has a right (SubjectAccessReview).
    pub async fn may(&self, user: &str, groups: &[&str], right: Right) -> Result<bool> {
        let mut groups: Vec<String> = groups.iter().map(|g| (*g).to_owned()).collect();
        groups.push("system:authenticated".into());
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: Some(user.to_owned()),
                groups: Some(groups),
                resource_attributes: Some(right.attributes()),
                ..SubjectAccessReviewSpec::default()
            },
            ..SubjectAccessReview::default()
        };
        let (api, params): (Api<SubjectAccessReview>, _) =
            (Api::all(self.client.clone()), PostParams::default());
        let answer = within(format!("asking what {user} may do"), || {
            api.create(&params, &review)
        })
        .await?;
        Ok(answer.status.is_some_and(|status| status.allowed))
    }

    /// Whether we ourselves may do `verb` on a resource such as `pods/eviction` (SelfSubjectAccessReview).
    pub async fn may_we(
        &self,
        verb: &str,
        group: &str,
        resource: &str,
        namespace: Option<&str>,
    ) -> Result<bool> {
        let (kind, part) = resource
            .split_once('/')
            .map_or((resource, None), |(kind, part)| (kind, Some(part)));
        let review = SelfSubjectAccessReview {
            spec: SelfSubjectAccessReviewSpec {
                resource_attributes: Some(ResourceAttributes {
                    verb: Some(verb.into()),
                    group: Some(group.into()),
                    resource: Some(kind.into()),
                    subresource: part.map(str::to_owned),
                    namespace: namespace.map(str::to_owned),
                    ..ResourceAttributes::default()
                }),
                ..SelfSubjectAccessReviewSpec::default()
            },
            ..SelfSubjectAccessReview::default()
        };
        let (api, params): (Api<SelfSubjectAccessReview>, _) =
            (Api::all(self.client.clone()), PostParams::default());
        let what = format!("asking whether we may {verb} {resource}");
        let answer = within(what, || api.create(&params, &review)).await?;
        Ok(answer.status.is_some_and(|status| status.allowed))
    }

    fn bindings(&self) -> Api<ClusterRoleBinding> {
        Api::all(self.client.clone())
    }

    /// Binds a group to a ClusterRole under a name, with our label. False if it is just so already.
    pub async fn bind(&self, binding: &Binding) -> Result<bool> {
        let (api, params, wanted) = (self.bindings(), PostParams::default(), binding.object());
        let what = format!("binding the group {} to {}", binding.group, binding.role);
        let failure = match insist(PATIENCE, || api.create(&params, &wanted)).await {
            Ok(_) => return Ok(true),
            Err(failure) => failure,
        };
        if failure.code() != Some(409) {
            return Err(failure.during(what));
        }
        let same = |found: &ClusterRoleBinding| {
            found.role_ref == wanted.role_ref
                && found
                    .subjects
                    .iter()
                    .flatten()
                    .any(|s| s.kind == "Group" && s.name == binding.group)
        };
        match within(what.as_str(), || api.get_opt(&binding.name)).await? {
            // Perhaps an earlier try made it, and its answer was lost.
            Some(found) if same(&found) => {
                Ok(failure.tried_before && is_managed(found.metadata.labels.as_ref()))
            }
            Some(_) => Err(Error::unfit(what)
                .because(format!(
                    "there is another ClusterRoleBinding {}",
                    binding.name
                ))
                .with_help(format!(
                    "look at it: kubectl get clusterrolebinding {} -o yaml",
                    binding.name
                ))),
            None => Err(Error::unfit(what)
                .because(format!(
                    "somebody removes the ClusterRoleBinding {} at the same time",
                    binding.name
                ))
                .with_help("run the same command again")),
        }
    }

    /// Removes a binding that bears our label; false if there is none of ours.
    pub async fn unbind(&self, name: &str) -> Result<bool> {
        let api = self.bindings();
        let found = within(format!("looking for the role binding {name}"), || {
            api.get_opt(name)
        })
        .await?;
        match found
            .filter(|binding| is_managed(binding.metadata.labels.as_ref()))
            .and_then(|binding| binding.metadata.uid)
        {
            Some(uid) => delete(&api, &format!("the role binding {name}"), name, &uid).await,
            None => Ok(false),
        }
    }

    /// Removes the binding of a cluster's group, unless the cluster shows a Node or a token that needs it: of whatever host
    /// and run. One that appears while we remove it finds it bound again. Who may not see or remove bindings keeps it.
    pub async fn release_binding(&self, cluster: &str, needed_by: NeededBy) -> Result<Released> {
        let name = binding_name(cluster);
        let group = match self.remove_binding(cluster, &name, needed_by).await? {
            Ok(group) => group,
            Err(stays) => return Ok(stays),
        };
        let Some(why) = self.needs_binding(cluster, needed_by).await? else {
            return Ok(Released::Removed(name));
        };
        self.bind(&Binding::of_cluster(cluster, group)).await?;
        Ok(Released::Kept(why))
    }

    /// Returns the group that was bound, or why there was nothing to remove.
    async fn remove_binding(
        &self,
        cluster: &str,
        name: &str,
        needed_by: NeededBy,
    ) -> Result<Result<String, Released>> {
        let api = self.bindings();
        let found = match within(format!("looking for the role binding {name}"), || {
            api.get_opt(name)
        })
        .await
        {
            Ok(Some(found)) => found,
            Ok(None) => return Ok(Err(Released::Absent)),
            Err(error) if is_forbidden(&error) => return Ok(Err(unseen(name, &error))),
            Err(error) => return Err(error),
        };
        if let Some(why) = foreign(&found, cluster) {
            return Ok(Err(Released::Foreign(why)));
        }
        match self.needs_binding(cluster, needed_by).await {
            Ok(None) => {}
            Ok(Some(why)) => return Ok(Err(Released::Kept(why))),
            Err(error) if is_forbidden(&error) => return Ok(Err(unseen(name, &error))),
            Err(error) => return Err(error),
        }
        let uid = found.metadata.uid.unwrap_or_default();
        let gone = delete(&api, &format!("the role binding {name}"), name, &uid).await;
        if !gone.map_err(|error| {
            error.with_help(format!(
                "have an administrator run: kubectl delete clusterrolebinding {name}"
            ))
        })? {
            return Ok(Err(Released::Absent));
        }
        let group = found
            .subjects
            .into_iter()
            .flatten()
            .find(|subject| subject.kind == "Group")
            .map(|subject| subject.name);
        Ok(Ok(group.unwrap_or_default()))
    }

    /// What of ours in this cluster lives by its binding.
    async fn needs_binding(&self, cluster: &str, needed_by: NeededBy) -> Result<Option<String>> {
        let of_cluster = |node: &super::node::Node| {
            node.owner
                .as_ref()
                .is_some_and(|owner| owner.is_of(cluster))
        };
        if needed_by == NeededBy::NodesAndTokens
            && let Some(node) = self.all_nodes().await?.into_iter().find(of_cluster)
        {
            return Ok(Some(format!("the Node {} is of this cluster", node.name)));
        }
        let token = self
            .our_tokens()
            .await?
            .into_iter()
            .find(|token| token.owner.is_of(cluster));
        Ok(token.map(|token| {
            format!(
                "the node {} joins with the token {}",
                token.owner.node, token.id
            )
        }))
    }

    /// Names of the bindings that give a ClusterRole to one of these groups.
    pub async fn bindings_of(&self, role: &str, groups: &[&str]) -> Result<Vec<String>> {
        let (api, every) = (self.bindings(), ListParams::default());
        let all = list("listing the role bindings", &api, &every).await?;
        let to = |binding: &ClusterRoleBinding| {
            binding
                .subjects
                .iter()
                .flatten()
                .any(|s| s.kind == "Group" && groups.contains(&s.name.as_str()))
        };
        Ok(all
            .into_iter()
            .filter(|binding| binding.role_ref.name == role && to(binding))
            .filter_map(|binding| binding.metadata.name)
            .collect())
    }
}

/// What became of a cluster's binding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Released {
    /// By its name.
    Removed(String),
    Absent,
    /// Something of ours still needs it.
    Kept(String),
    /// It has the name, and is not ours.
    Foreign(String),
}

/// Why a binding of that name is not the one we made for a cluster.
fn foreign(binding: &ClusterRoleBinding, cluster: &str) -> Option<String> {
    let name = binding.metadata.name.as_deref().unwrap_or_default();
    let says = binding
        .metadata
        .annotations
        .as_ref()
        .and_then(|annotations| annotations.get(CLUSTER_ANNOTATION));
    let labelled = is_managed(binding.metadata.labels.as_ref());
    match bound(cluster, labelled, says.map(String::as_str)) {
        Bound::Ours => None,
        Bound::Unlabelled => Some(format!(
            "the role binding {name} does not bear nodegraft's label"
        )),
        Bound::Other(of) => Some(format!("the role binding {name} is of the cluster {of}")),
        Bound::Unnamed => Some(format!(
            "the role binding {name} does not say of which cluster it is"
        )),
    }
}

/// Whose sake a binding is kept for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NeededBy {
    /// Joins under way: a machine that has joined needs it no more.
    Tokens,
    /// Nodes of the cluster, too: their next `up` would only bind it again.
    NodesAndTokens,
}

/// For who may not see what a decision needs.
fn unseen(name: &str, error: &Error) -> Released {
    Released::Kept(format!(
        "the role binding {name} was not looked at: {}",
        one_line(error)
    ))
}

/// A ClusterRoleBinding of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binding {
    pub name: String,
    pub role: &'static str,
    pub group: String,
    /// The cluster it goes with; `None` for one that stays until somebody revokes it.
    pub cluster: Option<String>,
}

impl Binding {
    /// Lets our own group of a cluster ask for certificates.
    pub fn of_cluster(cluster: &str, group: String) -> Self {
        Self {
            name: binding_name(cluster),
            role: Right::Request.role(),
            group,
            cluster: Some(cluster.to_owned()),
        }
    }

    /// What `access grant` makes: the right to ask, and approval of clients and renewals.
    pub fn granted(group: &str, auto_approve: bool) -> Vec<Self> {
        let binding = |name: &str, right: Right, group: &str| Self {
            name: name.to_owned(),
            role: right.role(),
            group: group.to_owned(),
            cluster: None,
        };
        let mut bindings = vec![binding("kubelet-bootstrap", Right::Request, group)];
        if auto_approve {
            bindings.push(binding(
                "kubelet-bootstrap-approve-client",
                Right::ClientApproval,
                group,
            ));
            bindings.push(binding(
                "kubelet-bootstrap-approve-renewal",
                Right::RenewalApproval,
                NODES,
            ));
        }
        bindings
    }

    fn object(&self) -> ClusterRoleBinding {
        const GROUP: &str = "rbac.authorization.k8s.io";
        ClusterRoleBinding {
            metadata: ObjectMeta {
                name: Some(self.name.clone()),
                labels: Some(BTreeMap::from([(
                    MANAGED_BY.0.to_owned(),
                    MANAGED_BY.1.to_owned(),
                )])),
                annotations: self.cluster.as_ref().map(|cluster| {
                    BTreeMap::from([(CLUSTER_ANNOTATION.to_owned(), cluster.clone())])
                }),
                ..ObjectMeta::default()
            },
            role_ref: RoleRef {
                api_group: Some(GROUP.into()),
                kind: "ClusterRole".into(),
                name: self.role.into(),
            },
            subjects: Some(vec![Subject {
                api_group: Some(GROUP.into()),
                kind: "Group".into(),
                name: self.group.clone(),
                ..Subject::default()
            }]),
        }
    }
}

pub fn binding_name(cluster: &str) -> String {
    format!("nodegraft:{cluster}:node-bootstrapper")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `kubectl create clusterrolebinding` makes, but for our label.
    #[test]
    fn access_is_granted_as_the_seed_grants_it() {
        let [binding] = &Binding::granted(BOOTSTRAPPERS, false)[..] else {
            panic!("there is more than one")
        };
        let expected = serde_json::json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": "kubelet-bootstrap", "labels": {"app.kubernetes.io/managed-by": "nodegraft"}},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "system:node-bootstrapper"},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "system:bootstrappers"}],
        });
        assert_eq!(serde_json::to_value(binding.object()).unwrap(), expected);
    }

    #[test]
    fn approval_is_granted_to_clients_and_to_renewals() {
        let granted = Binding::granted("system:bootstrappers:x", true);
        let pairs: Vec<(&str, &str)> = granted
            .iter()
            .map(|binding| (binding.role, binding.group.as_str()))
            .collect();
        assert_eq!(
            pairs,
            [
                ("system:node-bootstrapper", "system:bootstrappers:x"),
                (
                    "system:certificates.k8s.io:certificatesigningrequests:nodeclient",
                    "system:bootstrappers:x"
                ),
                (
                    "system:certificates.k8s.io:certificatesigningrequests:selfnodeclient",
                    "system:nodes"
                ),
            ]
        );
    }
}
