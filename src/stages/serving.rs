//! The end of a join where the user asks for it: kubelets that serve with a certificate of the cluster's.

use std::time::Duration;

use tokio::time::Instant;

use super::candidate::Candidate;
use crate::core::error::{Context, Error, Result};
use crate::pipeline::stage::Reporter;
use crate::rooms::cluster::csr::Request;
use crate::rooms::ssh::Session;

const SHORT: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_secs(3);
const CERTIFICATE: &str = "/var/lib/kubelet/pki/kubelet-server-current.pem";

/// Whether the kubelet has its serving certificate and waits for no other.
pub async fn is_served<C: Candidate>(on: &C, session: &Session) -> Result<bool> {
    Ok(has_certificate(session).await?
        && on
            .cluster()
            .pending_serving(&on.member().name)
            .await?
            .is_empty())
}

async fn has_certificate(session: &Session) -> Result<bool> {
    let found = session
        .output(
            &format!("[ -s {CERTIFICATE} ] && echo yes || echo no"),
            SHORT,
        )
        .await;
    Ok(found
        .doing("looking for the kubelet's serving certificate")?
        .trim()
        == "yes")
}

/// Sees the kubelet's requests for a serving certificate approved: those that name the node itself and nothing else.
pub async fn serve<C: Candidate>(on: &C, session: &Session, report: &Reporter) -> Result<()> {
    let (cluster, member) = (on.cluster(), on.member());
    report.progress("waiting for the kubelet to ask for a serving certificate");
    let asked = async {
        loop {
            let pending = cluster.pending_serving(&member.name).await?;
            if !pending.is_empty() || has_certificate(session).await? {
                return Ok(pending);
            }
            tokio::time::sleep(LOOK).await;
        }
    };
    let limit = member.deadlines.join;
    let pending = tokio::time::timeout(limit, asked).await.unwrap_or_else(|_| {
        Err(Error::failed(format!("the kubelet did not ask for a serving certificate within {} s", limit.as_secs())).with_help(
            "does its config.yaml say `serverTLSBootstrap: true`? the profiles write it when the spec says `approve_serving: true`",
        ))
    })?;
    // An older one may be among them, of which the kubelet knows nothing any more.
    for csr in pending {
        let objection =
            |seen: &Request| seen.serving_objection(&member.name, &member.hostname, member.ip);
        if let Some(objection) = objection(&csr) {
            return Err(Error::failed(format!("the serving certificate request {} was not approved: {objection}", csr.name))
                .with_help("only the node's own name and address are approved; if that is right as it is: kubectl certificate approve"));
        }
        report.progress(format!("approving {}", csr.name));
        let message = format!("node {} of cluster {} serves", member.name, on.terms().name);
        if !cluster.approve_csr(&csr, &message, objection).await? {
            return Err(Error::failed(format!(
                "this kubeconfig may not approve the serving certificate request {}",
                csr.name
            ))
            .with_help(format!(
                "have an administrator run: kubectl certificate approve {}",
                csr.name
            )));
        }
    }
    let until = Instant::now() + SHORT;
    while !has_certificate(session).await? {
        if Instant::now() > until {
            return Err(Error::failed(format!("the kubelet has no serving certificate {} s after the approval", SHORT.as_secs()))
                .with_help("is kube-controller-manager up, and does it sign for kubernetes.io/kubelet-serving?"));
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    Ok(())
}
