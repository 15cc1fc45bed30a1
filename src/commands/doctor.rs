//! `doctor`: looks at the host and the cluster, and says how to mend each finding. Changes nothing.

use std::path::Path;

use super::{Setting, Verdict, kubeconfig_or_default, load_spec, open_cluster};
use crate::cli::{self, Output};
use crate::core::error::{Error, Kind, Result, one_line, system_words};
use crate::core::finding::{Finding, State};
use crate::core::plan;
use crate::core::spec;
use crate::rooms::guestfs;
use crate::rooms::libvirt::Host;
use crate::stages::preflight;
use crate::ui;

pub async fn run(args: &cli::Doctor, setting: &Setting) -> Result<Verdict> {
    let spec = args.file.as_deref().map(load_spec).transpose()?;
    let host_spec = spec
        .as_ref()
        .map_or_else(spec::Host::default, |spec| spec.host.clone());
    let mut findings = tools();
    findings.extend(host(&host_spec).await);
    findings.extend(cluster(spec.as_ref(), setting).await);
    match setting.output {
        Output::Json | Output::Yaml => ui::print_data(&findings, setting.output)?,
        Output::Text => ui::print(&ui::findings(&findings))?,
    }
    Ok(
        if findings.iter().any(|finding| finding.state == State::Bad) {
            Verdict::Reported(Kind::Unfit)
        } else {
            Verdict::Done
        },
    )
}

fn bad(error: &Error) -> Finding {
    Finding::bad(
        one_line(error),
        error.help().unwrap_or("see the cause above"),
    )
}

/// Programs that `nodegraft ssh` and people use; the pipeline itself needs one, and that only for images without cloud-init.
fn tools() -> Vec<Finding> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let known = [
        ("ssh", "openssh-client", "`nodegraft ssh` needs it"),
        ("virsh", "libvirt-clients", "handy beside nodegraft"),
        (
            guestfs::PROGRAM,
            "guestfs-tools",
            "templates without cloud-init need it",
        ),
    ];
    known
        .into_iter()
        .map(|(tool, package, why)| {
            if std::env::split_paths(&path).any(|dir| dir.join(tool).is_file()) {
                Finding::good(format!("{tool} is installed"))
            } else {
                Finding::doubtful(
                    format!("{tool} is not installed: {why}"),
                    format!("apt-get install {package}"),
                )
            }
        })
        .collect()
}

async fn host(spec: &spec::Host) -> Vec<Finding> {
    let host = match Host::open(&spec.uri).await {
        Ok(host) => host,
        Err(error) => return vec![bad(&error)],
    };
    let mut findings = vec![match host.versions().await {
        Ok((libvirt, hypervisor)) => Finding::good(format!(
            "libvirt {libvirt} answers at {}, hypervisor {hypervisor}",
            spec.uri
        )),
        Err(error) => bad(&error),
    }];
    let pool = host.pool(&spec.pool, |_| false).await;
    match pool {
        Ok(pool) => match preflight::host(&host, spec, pool.as_ref()).await {
            Ok((more, _)) => findings.extend(more),
            Err(error) => findings.push(bad(&error)),
        },
        Err(error) => findings.push(bad(&error)),
    }
    if host.is_local() && Path::new("/dev/kvm").exists() {
        findings.push(
            match std::fs::OpenOptions::new()
                .read(true)
                .write(true)
                .open("/dev/kvm")
            {
                Ok(_) => Finding::good("/dev/kvm can be opened"),
                Err(error) => Finding::doubtful(
                    format!("/dev/kvm cannot be opened by you: {}", system_words(&error)),
                    "libvirt opens it itself; join the group kvm for use without libvirt",
                ),
            },
        );
    }
    findings
}

async fn cluster(spec: Option<&spec::Spec>, setting: &Setting) -> Vec<Finding> {
    let source = match spec {
        Some(spec) => match plan::Plan::new(
            spec,
            match setting.templates() {
                Ok(templates) => templates,
                Err(error) => return vec![bad(&error)],
            },
            &[],
        ) {
            Ok(plan) => plan.cluster,
            Err(error) => return vec![bad(&error)],
        },
        None => plan::ClusterPlan::of_kubeconfig(&kubeconfig_or_default(None), None),
    };
    let told = source.server;
    let Some(source) = source.source else {
        return vec![Finding::good("the spec joins no cluster")];
    };
    match open_cluster(&source).await {
        Ok(cluster) => {
            let way = preflight::way(told.as_ref().unwrap_or(&cluster.server));
            let found = preflight::cluster(&cluster).await;
            let mut findings = found.unwrap_or_else(|error| vec![bad(&error)]);
            findings.extend(way);
            findings
        }
        Err(error) => vec![bad(&error)],
    }
}
