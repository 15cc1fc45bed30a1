//! What the bearers of our tokens may do (the seed's chapter 8), asked of the API server itself.

use std::collections::BTreeMap;

use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec, SubjectAccessReview, SubjectAccessReviewSpec,
};
use k8s_openapi::api::rbac::v1::{ClusterRoleBinding, RoleRef, Subject};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, DeleteParams, ListParams, PostParams};

use super::{Cluster, MANAGED_BY, absent_as_none, code, within};
use crate::error::{Error, Result};

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
            Self::ClientApproval => "system:certificates.k8s.io:certificatesigningrequests:nodeclient",
            Self::RenewalApproval => "system:certificates.k8s.io:certificatesigningrequests:selfnodeclient",
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
        let api: Api<SubjectAccessReview> = Api::all(self.client.clone());
        let answer = within(format!("asking what {user} may do"), api.create(&PostParams::default(), &review)).await?;
        Ok(answer.status.is_some_and(|status| status.allowed))
    }

    /// Whether we ourselves may do `verb` on a resource (SelfSubjectAccessReview).
    pub async fn may_we(&self, verb: &str, group: &str, resource: &str, namespace: Option<&str>) -> Result<bool> {
        let review = SelfSubjectAccessReview {
            spec: SelfSubjectAccessReviewSpec {
                resource_attributes: Some(ResourceAttributes {
                    verb: Some(verb.into()),
                    group: Some(group.into()),
                    resource: Some(resource.into()),
                    namespace: namespace.map(str::to_owned),
                    ..ResourceAttributes::default()
                }),
                ..SelfSubjectAccessReviewSpec::default()
            },
            ..SelfSubjectAccessReview::default()
        };
        let api: Api<SelfSubjectAccessReview> = Api::all(self.client.clone());
        let answer = within(format!("asking whether we may {verb} {resource}"), api.create(&PostParams::default(), &review)).await?;
        Ok(answer.status.is_some_and(|status| status.allowed))
    }

    fn bindings(&self) -> Api<ClusterRoleBinding> {
        Api::all(self.client.clone())
    }

    /// Binds a group to a ClusterRole under a name, with our label. Harmless if it is just so already.
    pub async fn bind(&self, binding: &Binding) -> Result<()> {
        let wanted = binding.object();
        let what = format!("binding the group {} to {}", binding.group, binding.role);
        let made = within(what.clone(), async {
            match self.bindings().create(&PostParams::default(), &wanted).await {
                Err(error) if code(&error) == Some(409) => Ok(false),
                other => other.map(|_| true),
            }
        })
        .await?;
        if made {
            return Ok(());
        }
        let found = within(what.clone(), self.bindings().get(&binding.name)).await?;
        let same =
            found.role_ref == wanted.role_ref && found.subjects.iter().flatten().any(|s| s.kind == "Group" && s.name == binding.group);
        if same {
            return Ok(());
        }
        Err(Error::new(what)
            .because(Error::new(format!("there is another ClusterRoleBinding {}", binding.name)))
            .with_help(format!("look at it: kubectl get clusterrolebinding {} -o yaml", binding.name)))
    }

    /// Removes a binding that bears our label; false if there is none of ours.
    pub async fn unbind(&self, name: &str) -> Result<bool> {
        let found = within(format!("looking for the role binding {name}"), self.bindings().get_opt(name)).await?;
        let ours = found.is_some_and(|b| b.metadata.labels.is_some_and(|l| l.get(MANAGED_BY.0).map(String::as_str) == Some(MANAGED_BY.1)));
        if !ours {
            return Ok(false);
        }
        within(format!("deleting the role binding {name}"), async {
            absent_as_none(self.bindings().delete(name, &DeleteParams::default()).await).map(|found| found.is_some())
        })
        .await
    }

    /// Names of the bindings that give a ClusterRole to one of these groups.
    pub async fn bindings_of(&self, role: &str, groups: &[&str]) -> Result<Vec<String>> {
        let all = within("listing the role bindings", self.bindings().list(&ListParams::default())).await?;
        let to = |binding: &ClusterRoleBinding| {
            binding.subjects.iter().flatten().any(|s| s.kind == "Group" && groups.contains(&s.name.as_str()))
        };
        Ok(all
            .into_iter()
            .filter(|binding| binding.role_ref.name == role && to(binding))
            .filter_map(|binding| binding.metadata.name)
            .collect())
    }
}

/// A ClusterRoleBinding of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binding {
    pub name: String,
    pub role: &'static str,
    pub group: String,
}

impl Binding {
    /// Lets our own group of a cluster ask for certificates.
    pub fn of_cluster(cluster: &str, group: String) -> Self {
        Self { name: binding_name(cluster), role: Right::Request.role(), group }
    }

    /// What `access grant` makes: the seed's chapter 8, and approval of clients and renewals.
    pub fn granted(group: &str, auto_approve: bool) -> Vec<Self> {
        let binding = |name: &str, right: Right, group: &str| Self { name: name.to_owned(), role: right.role(), group: group.to_owned() };
        let mut bindings = vec![binding("kubelet-bootstrap", Right::Request, group)];
        if auto_approve {
            bindings.push(binding("kubelet-bootstrap-approve-client", Right::ClientApproval, group));
            bindings.push(binding("kubelet-bootstrap-approve-renewal", Right::RenewalApproval, NODES));
        }
        bindings
    }

    fn object(&self) -> ClusterRoleBinding {
        const GROUP: &str = "rbac.authorization.k8s.io";
        ClusterRoleBinding {
            metadata: ObjectMeta {
                name: Some(self.name.clone()),
                labels: Some(BTreeMap::from([(MANAGED_BY.0.to_owned(), MANAGED_BY.1.to_owned())])),
                ..ObjectMeta::default()
            },
            role_ref: RoleRef { api_group: Some(GROUP.into()), kind: "ClusterRole".into(), name: self.role.into() },
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

    /// What the seed's chapter 8 makes with `kubectl create clusterrolebinding`, but for our label.
    #[test]
    fn access_is_granted_as_the_seed_grants_it() {
        let [binding] = &Binding::granted(BOOTSTRAPPERS, false)[..] else { panic!("there is more than the seed's one") };
        let seed = serde_json::json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": "kubelet-bootstrap", "labels": {"app.kubernetes.io/managed-by": "nodegraft"}},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "system:node-bootstrapper"},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "system:bootstrappers"}],
        });
        assert_eq!(serde_json::to_value(binding.object()).unwrap(), seed);
    }

    #[test]
    fn approval_is_granted_to_clients_and_to_renewals() {
        let granted = Binding::granted("system:bootstrappers:x", true);
        let pairs: Vec<(&str, &str)> = granted.iter().map(|binding| (binding.role, binding.group.as_str())).collect();
        assert_eq!(
            pairs,
            [
                ("system:node-bootstrapper", "system:bootstrappers:x"),
                ("system:certificates.k8s.io:certificatesigningrequests:nodeclient", "system:bootstrappers:x"),
                ("system:certificates.k8s.io:certificatesigningrequests:selfnodeclient", "system:nodes"),
            ]
        );
    }
}
