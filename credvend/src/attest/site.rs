//! What is asked of a cluster besides its jobs: its settings (`scontrol show config`), its nodes' addresses (sinfo(1)).

use std::collections::HashMap;

use credd_protocol::NodeName;

/// The settings that bear on trust.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// `ClusterName`.
    pub cluster: String,
    /// `AccountingStorageType`.
    pub storage: String,
    /// `AccountingStorageEnforce`.
    pub enforce: String,
    /// `PrivateData`.
    pub private_data: String,
    /// The uid of `SlurmUser`.
    pub slurm_uid: Option<u32>,
}

impl Settings {
    /// Reads `scontrol show config`: lines of `Name   = value`. Only the administrators write there.
    ///
    /// # Errors
    /// A sentence, if a setting is missing: an answer cut short has no say.
    pub fn parse(answer: &[u8]) -> Result<Self, String> {
        let text = std::str::from_utf8(answer).map_err(|_| "scontrol show config did not answer in text")?;
        if !text.ends_with('\n') {
            return Err("scontrol show config was cut short".into());
        }
        let value = |name: &str| {
            let mut values = text.lines().filter_map(|line| {
                let (key, value) = line.split_once('=')?;
                (key.trim_end() == name).then(|| value.trim().to_owned())
            });
            match (values.next(), values.next()) {
                (Some(value), None) => Ok(value),
                (None, _) => Err(format!("scontrol show config has no {name}")),
                (Some(_), Some(_)) => Err(format!("scontrol show config has {name} twice")),
            }
        };
        let slurm_user = value("SlurmUser")?;
        let slurm_uid = slurm_user.strip_suffix(')').and_then(|u| u.rsplit_once('(')).and_then(|(_, u)| u.parse().ok());
        Ok(Settings {
            cluster: value("ClusterName")?,
            storage: value("AccountingStorageType")?,
            enforce: value("AccountingStorageEnforce")?,
            private_data: value("PrivateData")?,
            slurm_uid,
        })
    }

    /// Why an account may be the user's own invention; `None` if Slurm checks it at submission.
    pub fn why_accounts_are_not_enforced(&self) -> Option<String> {
        // Without slurmdbd there are no associations to check against, whatever is to be enforced.
        if self.storage != "accounting_storage/slurmdbd" {
            return Some(format!("AccountingStorageType is {:?}, not accounting_storage/slurmdbd", self.storage));
        }
        // `limits`, `qos` and `safe` imply it, and then it is listed (slurm.conf(5), AccountingStorageEnforce).
        if !self.enforce.split(',').any(|word| matches!(word.trim(), "associations" | "all")) {
            return Some(format!("AccountingStorageEnforce is {:?}, without associations", self.enforce));
        }
        None
    }

    /// Whether `PrivateData=jobs` hides other users' jobs from this uid. slurmctld then says "Invalid job id specified"
    /// for a job that is running, as if it were over.
    pub fn hides_jobs_from(&self, uid: u32) -> bool {
        let private = self.private_data.split(',').any(|word| matches!(word.trim(), "jobs" | "all"));
        private && uid != 0 && self.slurm_uid != Some(uid)
    }
}

/// The argument of `sinfo --Format` for [`addresses`].
pub const ADDRESS_FORMAT: &str = "NodeList:129,NodeAddr:0";
const NAME_WIDTH: usize = 129;

/// The addresses of all nodes from sinfo's answer, which has one row for each of a node's partitions. A name that fills
/// its column may have been cut, and one that is none of ours cannot prove itself: those are left out.
///
/// # Errors
/// A sentence, if the answer is not whole, or gives a node two addresses or none.
pub fn addresses(answer: &[u8]) -> Result<HashMap<NodeName, String>, String> {
    let text = std::str::from_utf8(answer).map_err(|_| "sinfo did not answer in text")?;
    let (header, rows) = text.split_once('\n').ok_or("sinfo's answer has no header line")?;
    if !header.starts_with("NODELIST") || !header.get(NAME_WIDTH..).is_some_and(|h| h.starts_with("NODE_ADDR")) {
        return Err("sinfo's answer does not have the columns that were asked for".into());
    }
    if !(rows.is_empty() || rows.ends_with('\n')) {
        return Err("sinfo's answer is cut short".into());
    }
    let mut found: HashMap<NodeName, String> = HashMap::new();
    for row in rows.lines() {
        let (name, address) = row.split_at_checked(NAME_WIDTH).ok_or("sinfo's answer has a short row")?;
        let address = address.trim_end();
        if address.is_empty() {
            return Err(format!("sinfo gives no address in {row:?}"));
        }
        let Some(Ok(name)) = name.ends_with(' ').then(|| name.trim_end().parse::<NodeName>()) else { continue };
        match found.get(&name) {
            None => {
                found.insert(name, address.to_owned());
            }
            Some(other) if other == address => {}
            Some(other) => return Err(format!("sinfo gives node {name} two addresses, {other:?} and {address:?}")),
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn config(storage: &str, enforce: &str, private: &str) -> Settings {
        let text = format!(
            "Configuration data as of 2026-11-22T14:00:00\nAccountingStorageEnforce = {enforce}\nAccountingStorageType   = {storage}\nClusterName             = lab\nPrivateData             = {private}\nSlurmUser               = slurm(64030)\n\nSlurmctld(primary) at h is UP\n"
        );
        Settings::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn accounts_count_only_with_slurmdbd_and_associations() {
        let why = |s, e| config(s, e, "none").why_accounts_are_not_enforced();
        assert_eq!(why("accounting_storage/slurmdbd", "associations,limits"), None);
        assert!(why("accounting_storage/slurmdbd", "none").unwrap().contains("without associations"));
        assert!(why("accounting_storage/none", "associations").unwrap().contains("slurmdbd"));
    }

    #[test]
    fn private_data_blinds_everyone_but_root_and_slurm() {
        let settings = config("x", "none", "accounts,jobs");
        assert!(settings.hides_jobs_from(1000));
        assert!(!settings.hides_jobs_from(0) && !settings.hides_jobs_from(64030));
        assert!(!config("x", "none", "none").hides_jobs_from(1000));
    }

    #[test]
    fn settings_cut_short_have_no_say() {
        assert!(Settings::parse(b"").is_err());
        assert!(Settings::parse(b"AccountingStorageType = accounting_storage/slurmdbd\n").is_err());
    }

    fn all(pairs: &[(&str, &str)]) -> HashMap<NodeName, String> {
        pairs.iter().map(|(name, address)| (name.parse().unwrap(), (*address).to_owned())).collect()
    }

    #[test]
    fn a_node_has_one_address_in_all_its_partitions() {
        let header = format!("{:129}NODE_ADDR\n", "NODELIST");
        let with = |rows: &[(&str, &str)]| {
            let rows: String = rows.iter().map(|(n, a)| format!("{n:129}{a}\n")).collect();
            addresses(format!("{header}{rows}").as_bytes())
        };
        assert_eq!(with(&[]), Ok(all(&[])));
        let two = [("n2", "10.0.0.2"), ("n1", "10.0.0.1"), ("n2", "10.0.0.2")];
        assert_eq!(with(&two), Ok(all(&two)));
        assert!(with(&[("n2", "10.0.0.2"), ("n2", "10.0.0.3")]).is_err());
        assert!(with(&[("n2", "")]).is_err());
        assert_eq!(with(&[(&"n".repeat(129), "10.0.0.2"), ("n1", "10.0.0.1")]), Ok(all(&[("n1", "10.0.0.1")])));
        assert!(addresses(b"").is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), rows in "[ -~é\n]{0,200}") {
            let _ = (Settings::parse(&bytes), addresses(&bytes));
            let text = format!("{:129}NODE_ADDR\n{rows}", "NODELIST");
            let _ = addresses(text.as_bytes());
        }

        /// Less of an answer is an error or means the same; it never means something else.
        #[test]
        fn settings_cut_anywhere_say_the_same_or_nothing(
            storage in "accounting_storage/[a-z]{1,9}",
            enforce in "[a-z]{1,9}(,[a-z]{1,9}){0,3}",
            private in "(none|jobs|jobs,users|all)",
            cluster in "[a-z][a-z0-9]{0,8}",
            uid in any::<u32>(),
            pairs in proptest::collection::vec(("[A-Z][A-Za-z]{1,12}[0-9]", "[ -~]{0,20}"), 0..6),
            cut in any::<proptest::sample::Index>(),
        ) {
            let mut text = String::from("Configuration data as of 2026-11-22T14:00:00\n");
            for (name, value) in &pairs {
                text += &format!("{name:23} = {value}\n");
            }
            text += &format!(
                "AccountingStorageEnforce = {enforce}\nAccountingStorageType   = {storage}\n\
                 ClusterName             = {cluster}\nPrivateData             = {private}\nSlurmUser               = slurm({uid})\n\nSlurmctld is UP\n"
            );
            let whole = Settings::parse(text.as_bytes()).unwrap();
            let expected = Settings { cluster, storage, enforce, private_data: private, slurm_uid: Some(uid) };
            prop_assert_eq!(&whole, &expected);
            if let Ok(part) = Settings::parse(&text.as_bytes()[..cut.index(text.len())]) {
                prop_assert_eq!(part, whole);
            }
            // A setting that is there twice has no say either.
            let twice = format!("{text}PrivateData = none\n");
            prop_assert!(Settings::parse(twice.as_bytes()).is_err());
        }

        #[test]
        fn an_answer_of_sinfo_never_gives_another_address(
            name in "[a-z][a-z0-9.-]{0,30}",
            address_of in "[0-9a-f.:]{1,40}",
            rows in 1usize..4,
            other in "[a-z][a-z0-9.-]{0,30}",
            cut in any::<proptest::sample::Index>(),
        ) {
            let header = format!("{:129}NODE_ADDR\n", "NODELIST");
            let text = format!("{header}{}", format!("{name:129}{address_of}\n").repeat(rows));
            let expected = all(&[(&name, &address_of)]);
            prop_assert_eq!(addresses(text.as_bytes()), Ok(expected.clone()));
            if let Ok(part) = addresses(&text.as_bytes()[..cut.index(text.len())]) {
                prop_assert!(part.is_empty() || part == expected);
            }
            if other != name {
                let another = format!("{text}{other:129}{address_of}\n");
                prop_assert_eq!(addresses(another.as_bytes()), Ok(all(&[(&name, &address_of), (&other, &address_of)])));
            }
        }
    }
}
