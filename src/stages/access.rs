//! Access: our tokens may ask for a certificate. Binds nothing that is bound already; else only our own group.

use std::time::Duration;

use async_trait::async_trait;
use tokio::time::Instant;

use super::candidate::Joining;
use crate::core::error::{Error, Result};
use crate::core::journal::{Journal, Thing};
use crate::core::spec;
use crate::core::stage_name::StageName;
use crate::pipeline::stage::{Check, Reporter, Stage};
use crate::rooms::cluster::access::{BOOTSTRAPPERS, Binding, Right, binding_name};
use crate::rooms::cluster::is_forbidden;

/// Stands for any token: the API server answers for its groups.
const ANY_TOKEN: &str = "system:bootstrap:000000";

pub struct Access;

#[async_trait]
impl<C: Joining> Stage<C> for Access {
    fn name(&self) -> StageName {
        StageName::Access
    }

    fn plan(&self, _: &C::Planned) -> String {
        "tokens may ask for certificates; binds our own group if nothing else lets them".into()
    }

    fn deadline(&self, _: &C) -> Duration {
        Duration::from_secs(60)
    }

    async fn check(&self, on: &mut C, _: &Reporter) -> Result<Check> {
        if on.terms().access == spec::Access::None {
            return Ok(Check::Done("not looked at, as the spec says".into()));
        }
        let group = on.terms().group();
        let required = on.terms().access == spec::Access::Require;
        match on
            .cluster()
            .may(ANY_TOKEN, &[BOOTSTRAPPERS, &group], Right::Request)
            .await
        {
            Ok(true) => return Ok(Check::Done("tokens may ask for certificates".into())),
            Ok(false) if required => return Ok(Check::Conflict(missing(&group))),
            Ok(false) => {}
            // The join tells whether they may.
            Err(error) if required && is_forbidden(&error) => {
                return Ok(Check::Done(
                    "not looked at: this kubeconfig may not ask what tokens may do".into(),
                ));
            }
            Err(error) if is_forbidden(&error) => {
                return Err(error.with_help("if tokens may ask for certificates already, say so: `access: require` in the spec"));
            }
            Err(error) => return Err(error),
        }
        Ok(Check::Needed(format!(
            "the group {group} is to be bound to system:node-bootstrapper"
        )))
    }

    async fn apply(&self, on: &mut C, report: &Reporter, journal: &Journal) -> Result<()> {
        bind(on, report, journal).await
    }

    /// A binding that was made is in the journal.
    async fn stopped(&self, _: &C) {}
}

/// Binds again what is gone since [`Access`] looked.
pub(super) async fn restore<C: Joining>(
    on: &C,
    report: &Reporter,
    journal: &Journal,
) -> Result<()> {
    let group = on.terms().group();
    if on.terms().access != spec::Access::Ensure
        || on
            .cluster()
            .may(ANY_TOKEN, &[BOOTSTRAPPERS, &group], Right::Request)
            .await?
    {
        return Ok(());
    }
    bind(on, report, journal).await
}

async fn bind<C: Joining>(on: &C, report: &Reporter, journal: &Journal) -> Result<()> {
    let group = on.terms().group();
    match on
        .cluster()
        .may_we(
            "create",
            "rbac.authorization.k8s.io",
            "clusterrolebindings",
            None,
        )
        .await
    {
        Ok(false) => return Err(missing(&group)),
        Err(error) if !is_forbidden(&error) => return Err(error),
        _ => {}
    }
    // Releasing it proves whose it is, and that nobody needs it.
    journal.made(Thing::Binding {
        name: binding_name(&on.terms().name),
    });
    let bound = on
        .cluster()
        .bind(&Binding::of_cluster(&on.terms().name, group.clone()))
        .await;
    bound.map_err(|error| missing(&group).because(error))?;
    // The authorizer learns of a binding a moment after it was made.
    let until = Instant::now() + Duration::from_secs(20);
    while !on
        .cluster()
        .may(ANY_TOKEN, &[BOOTSTRAPPERS, &group], Right::Request)
        .await?
    {
        if Instant::now() > until {
            return Err(Error::unfit(format!(
                "the binding {} was made, but does not work after 20 s",
                binding_name(&on.terms().name)
            ))
            .with_help(
                "is it bound to system:node-bootstrapper, and does that ClusterRole exist?",
            ));
        }
        report.progress("waiting for the binding to take effect");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

fn missing(group: &str) -> Error {
    Error::unfit("bootstrap tokens may not ask for certificates in this cluster, and this kubeconfig may not change that")
        .with_help(format!("have an administrator run: kubectl create clusterrolebinding nodegraft-bootstrap --clusterrole=system:node-bootstrapper --group={group}"))
}
