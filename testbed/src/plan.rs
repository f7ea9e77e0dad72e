//! What a cluster should look like.

use std::path::PathBuf;

/// One partition of the cluster; every node is in every partition.
#[derive(Debug, Clone)]
pub struct Partition {
    /// `PartitionName`.
    pub name: String,
    /// More of its line in slurm.conf, e.g. `MaxTime=1`.
    pub slurm: String,
    /// Its options in `plugstack.conf`, what follows `partition:NAME=`; `None` leaves it to the default.
    pub plugin: Option<String>,
}

/// A role that a project has besides its default one. In the pretend AWS it may read and write the project's bucket.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub struct ExtraRole {
    /// The role's name in AWS, and in the project's map.
    pub name: String,
    /// The project that has it.
    pub project: String,
}

/// Programs to run in place of those that were built with the test. [`crate::previous_release::programs`] has some.
#[derive(Debug, Clone, Default)]
pub struct Programs {
    /// Every node's daemon.
    pub credd: Option<PathBuf>,
    /// The service.
    pub credvend: Option<PathBuf>,
    /// The plugin's shared object.
    pub plugin: Option<PathBuf>,
}

/// The plan of a cluster. [`Plan::default`] is the usual one; `Plan { nodes: 3, ..Plan::default() }` and the methods
/// below vary it.
#[derive(Debug, Clone)]
pub struct Plan {
    /// `ClusterName`.
    pub cluster_name: String,
    /// How many compute nodes: n1, n2, … where [`Plan::named_nodes`] has no other names.
    pub nodes: usize,
    /// Names of the first nodes.
    pub named_nodes: Vec<String>,
    /// A second slurmctld, on a host `backup`, that takes over when the head's is gone.
    pub backup_controller: bool,
    /// `CPUs` of each node, whatever the machine really has.
    pub cpus_per_node: usize,
    /// The partitions; the first one is the default.
    pub partitions: Vec<Partition>,
    /// `PrologFlags`; empty leaves the line out.
    pub prolog_flags: String,
    /// More lines for slurm.conf; `{run}` stands for the run directory.
    pub slurm_conf: String,
    /// Executables that slurm.conf or credvend's configuration may name as `{run}/etc/NAME`: name and text, which may
    /// hold `{run}` too.
    pub scripts: Vec<(String, String)>,
    /// Options of the plugin before the partitions' ones, e.g. `default=on`.
    pub plugin_options: String,
    /// The whole `plugstack.conf` instead; `{plugin}` stands for the plugin's path.
    pub plugstack: Option<String>,
    /// More lines for `credd.toml`, after those that the testbed writes.
    pub credd_toml: String,
    /// More lines for `credvend.toml`, after those that the testbed writes; `{run}` stands for the run directory.
    pub credvend_toml: String,
    /// The whole `projects.toml` instead of the one the testbed writes; `{account}` stands for the AWS account.
    pub projects_toml: Option<String>,
    /// Roles besides one per project.
    pub more_roles: Vec<ExtraRole>,
    /// Environment that `credvend` gets besides its AWS keys and endpoint.
    pub credvend_env: Vec<(String, String)>,
    /// Environment that every `credd` gets.
    pub credd_env: Vec<(String, String)>,
    /// Programs of another release.
    pub programs: Programs,
    /// The pretend AWS.
    pub aws: bool,
    /// Slurm alone: no plugin, no credd, no credvend.
    pub bare: bool,
}

impl Default for Plan {
    fn default() -> Self {
        let partition = |name: &str, slurm: &str, plugin: Option<&str>| Partition {
            name: name.to_owned(),
            slurm: slurm.to_owned(),
            plugin: plugin.map(str::to_owned),
        };
        Plan {
            cluster_name: "lab".to_owned(),
            nodes: 2,
            named_nodes: Vec::new(),
            backup_controller: false,
            cpus_per_node: 16,
            partitions: vec![
                partition("batch", "", None),
                partition("debug", "", Some("off")),
                partition("strict", "", Some("on,on-error=fail")),
                partition("prefetch", "", Some("on,prefetch")),
                partition("tokenfile", "", Some("on,token-file")),
                partition("brief", "MaxTime=1", None),
            ],
            prolog_flags: "Alloc,Contain".to_owned(),
            slurm_conf: String::new(),
            scripts: Vec::new(),
            plugin_options: "default=on".to_owned(),
            plugstack: None,
            credd_toml: String::new(),
            credvend_toml: String::new(),
            projects_toml: None,
            more_roles: Vec::new(),
            credvend_env: Vec::new(),
            credd_env: Vec::new(),
            programs: Programs::default(),
            aws: true,
            bare: false,
        }
    }
}

impl Plan {
    /// Slurm with its users and accounts, and nothing of ours.
    pub fn bare() -> Self {
        Plan { bare: true, aws: false, ..Plan::default() }
    }

    /// Another partition.
    pub fn partition(mut self, name: &str, slurm: &str, plugin: Option<&str>) -> Self {
        self.partitions.push(Partition {
            name: name.to_owned(),
            slurm: slurm.to_owned(),
            plugin: plugin.map(str::to_owned),
        });
        self
    }

    /// More lines for slurm.conf.
    pub fn slurm_conf(mut self, lines: &str) -> Self {
        self.slurm_conf.push_str(lines);
        self.slurm_conf.push('\n');
        self
    }

    /// An executable that slurm.conf or credvend's configuration may name as `{run}/etc/NAME`.
    pub fn script(mut self, name: &str, text: &str) -> Self {
        self.scripts.push((name.to_owned(), text.to_owned()));
        self
    }

    /// More lines for `credd.toml`.
    pub fn credd_toml(mut self, lines: &str) -> Self {
        self.credd_toml.push_str(lines);
        self.credd_toml.push('\n');
        self
    }

    /// More lines for `credvend.toml`.
    pub fn credvend_toml(mut self, lines: &str) -> Self {
        self.credvend_toml.push_str(lines);
        self.credvend_toml.push('\n');
        self
    }

    /// The names of the compute nodes.
    pub fn node_names(&self) -> Vec<String> {
        let usual = (1..=self.nodes).map(|n| format!("n{n}"));
        self.named_nodes.iter().cloned().chain(usual.skip(self.named_nodes.len())).collect()
    }
}
