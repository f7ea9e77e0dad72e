//! `credvend store init|policy`.

use anyhow::bail;

use super::parts;
use crate::config::{Config, StoreKind};
use crate::projects::partition_of;
use crate::store::Store;
use crate::store::dynamo::policy;

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Make the DynamoDB tables that are missing, protect them, and wait until they can be used
    Init {
        /// Say that this is another store than before, so that every node asks anew: after a restore from a backup
        #[arg(long)]
        new_epoch: bool,
    },
    /// Print the IAM policy that lets credvend use its tables
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
            if config.store.kind != StoreKind::Dynamodb {
                println!("the store is SQLite's {}: credvend makes it at first start", config.store.path.display());
                return Ok(());
            }
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
            Ok(())
        }
        Command::Policy { account } => {
            if config.store.kind != StoreKind::Dynamodb {
                bail!("the store is SQLite's and needs no permission of AWS");
            }
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
