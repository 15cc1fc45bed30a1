//! What the bearers of our tokens may do (the seed's chapter 8), asked of the API server itself.

use std::collections::BTreeMap;

use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec, SubjectAccessReview, SubjectAccessReviewSpec,
};
use k8s_openapi::api::rbac::v1::{ClusterRoleBinding, RoleRef, Subject};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, DeleteParams, PostParams};

use super::{CLUSTER_ANNOTATION, Cluster, MANAGED_BY, absent_as_none, code, within};
use crate::error::Result;

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

    /// Binds a group to `system:node-bootstrapper`. Harmless if it is bound already.
    pub async fn bind_bootstrapper(&self, cluster: &str, group: &str) -> Result<()> {
        let binding = ClusterRoleBinding {
            metadata: ObjectMeta {
                name: Some(binding_name(cluster)),
                labels: Some(BTreeMap::from([(MANAGED_BY.0.to_owned(), MANAGED_BY.1.to_owned())])),
                annotations: Some(BTreeMap::from([(CLUSTER_ANNOTATION.to_owned(), cluster.to_owned())])),
                ..ObjectMeta::default()
            },
            role_ref: RoleRef {
                api_group: Some("rbac.authorization.k8s.io".into()),
                kind: "ClusterRole".into(),
                name: "system:node-bootstrapper".into(),
            },
            subjects: Some(vec![Subject {
                api_group: Some("rbac.authorization.k8s.io".into()),
                kind: "Group".into(),
                name: group.to_owned(),
                ..Subject::default()
            }]),
        };
        within(format!("binding the group {group} to system:node-bootstrapper"), async {
            match self.bindings().create(&PostParams::default(), &binding).await {
                Err(error) if code(&error) == Some(409) => Ok(()),
                other => other.map(drop),
            }
        })
        .await
    }

    /// Removes the binding we made for a cluster; false if there is none of ours.
    pub async fn unbind_bootstrapper(&self, cluster: &str) -> Result<bool> {
        let name = binding_name(cluster);
        let found = within("looking for our role binding", self.bindings().get_opt(&name)).await?;
        let ours = found.is_some_and(|b| b.metadata.labels.is_some_and(|l| l.get(MANAGED_BY.0).map(String::as_str) == Some(MANAGED_BY.1)));
        if !ours {
            return Ok(false);
        }
        within(format!("deleting the role binding {name}"), async {
            absent_as_none(self.bindings().delete(&name, &DeleteParams::default()).await).map(|found| found.is_some())
        })
        .await
    }
}

pub fn binding_name(cluster: &str) -> String {
    format!("nodegraft:{cluster}:node-bootstrapper")
}
