//! `credvend store init|policy|copy`.

use std::io::IsTerminal;
use std::sync::Arc;

use anyhow::{Context, bail};

use super::parts;
use crate::config::{Config, ProjectsFrom, StoreKind};
use crate::projects::partition_of;
use crate::store::Store;
use crate::store::archive::{self, Archive};
use crate::store::dynamo::policy;
use crate::store::sqlite::SqliteStore;

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Make the DynamoDB tables that are missing, protect them, and wait until they can be used
    ///
    /// Whatever [store] kind is: they are made before a site moves to them.
    Init {
        /// Say that this is another store than before, so that every node asks anew: after a restore from a backup
        #[arg(long)]
        new_epoch: bool,
    },
    /// Copy everything from one store to the other of this configuration, while no credvend runs
    ///
    /// To be run as credvend's own user and with its environment, since the file and the identity in AWS are its own. The
    /// target is to be empty. A copy that was cut off is made again with --resume. Afterwards, set [store] kind.
    Copy {
        /// Where everything is
        #[arg(long)]
        from: StoreKind,
        /// Where it is to be
        #[arg(long)]
        to: StoreKind,
        /// Make a copy that was cut off again, over what is there
        #[arg(long)]
        resume: bool,
    },
    /// Print the IAM policy that lets credvend use its DynamoDB tables, whatever [store] kind is
    Policy {
        /// The twelve digits of the tables' account
        #[arg(long, value_parser = account)]
        account: Option<String>,
    },
}

fn account(text: &str) -> Result<String, String> {
    let digits = text.len() == 12 && text.bytes().all(|b| b.is_ascii_digit());
    if digits { Ok(text.to_owned()) } else { Err("an AWS account is twelve digits".into()) }
}

pub fn run(config: &Config, command: Command) -> anyhow::Result<()> {
    match command {
        Command::Init { new_epoch } => {
            let done = super::block_on(async {
                let dynamo = parts::dynamo(config).await?;
                let done = dynamo.init(new_epoch).await?;
                dynamo.check().await?;
                anyhow::Ok(done)
            })??;
            for line in &done {
                println!("{line}");
            }
            println!("the store's tables {}* can be used", config.store.table_prefix);
            println!("credvend's identity needs the policy that `credvend store policy` prints");
            if config.store.kind != StoreKind::Dynamodb {
                println!(
                    "credvend goes on with SQLite's {} until [store] kind is \"dynamodb\"; `credvend store copy` takes \
                     along what is in it",
                    config.store.path.display()
                );
            }
            Ok(())
        }
        Command::Copy { from, to, resume } => super::block_on(copy_between(config, from, to, resume))?,
        Command::Policy { account } => {
            let region = match &config.store.region {
                Some(region) => region.clone(),
                None => parts::region(config)?,
            };
            let tables = crate::store::dynamo::Tables::new(&config.store.table_prefix);
            let account = account.as_deref().unwrap_or("*");
            super::print_json(&policy(&tables, partition_of(&region), region.as_str(), account))
        }
    }
}

async fn opened(config: &Config, kind: StoreKind) -> anyhow::Result<Arc<dyn Archive>> {
    Ok(match kind {
        StoreKind::Sqlite => Arc::new(SqliteStore::open(&config.store.path)?),
        StoreKind::Dynamodb => Arc::new(parts::dynamo(config).await?),
    })
}

async fn copy_between(config: &Config, from: StoreKind, to: StoreKind, resume: bool) -> anyhow::Result<()> {
    if from == to {
        bail!("--from and --to are the same store");
    }
    if from == StoreKind::Sqlite && !config.store.path.exists() {
        bail!("there is no {}", config.store.path.display());
    }
    if std::os::unix::net::UnixStream::connect(&config.admin_socket).is_ok() {
        bail!("a credvend runs here: stop every credvend of this site first, or what it does meanwhile is lost");
    }
    let source = opened(config, from).await?;
    let target = opened(config, to).await?;
    source.check().await.context("--from")?;
    target.check().await.context("--to")?;
    if source.get_note(archive::NOTES, archive::UNFINISHED).await?.is_some() {
        bail!("a copy into the source was not finished");
    }
    let cut_off = target.get_note(archive::NOTES, archive::UNFINISHED).await?.is_some();
    match (cut_off, resume) {
        (true, false) => bail!("a copy into the target was cut off: copy again with --resume"),
        (false, true) => bail!("no copy into the target was cut off; without --resume a new one begins"),
        (false, false) if !archive::is_empty(target.as_ref()).await? => {
            bail!("the target is not empty: nothing is copied over what is there")
        }
        _ => {}
    }
    if to == StoreKind::Sqlite && nix::unistd::geteuid().is_root() {
        eprintln!(
            "credvend: this is done as root, so {} will be root's, and for a credvend of root's",
            config.store.path.display()
        );
    }
    let terminal = std::io::stderr().is_terminal();
    let mut last = None;
    let counts = archive::copy(source.as_ref(), &target, |part, count| {
        if terminal {
            eprint!("\r{part}: {count}          ");
        } else if last.replace(part) != Some(part) {
            eprintln!("{part} …");
        }
    })
    .await?;
    if terminal {
        eprintln!();
    }
    for (part, count) in counts {
        println!("{part}: {count}, as in the source");
    }
    println!("everything is copied; set [store] kind in the configuration, and start credvend");
    if config.projects_from == ProjectsFrom::Store {
        println!("the projects' table is not part of it: write projects.toml where the target is SQLite");
    }
    Ok(())
}
