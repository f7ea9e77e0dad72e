//! MPI's launchers and their like start processes on other nodes with the first node's environment: each process still
//! gets the identity of its own node.

use crate::support::{SOON, arn, cluster, whoami};

/// What a job of two nodes prints, sorted.
fn batch(cluster: &testbed::Cluster, script: &str) -> Vec<String> {
    let alice = cluster.as_user("alice");
    let job = alice.sbatch(script, &["-N2", "-w", "n1,n2", "--ntasks-per-node=1"]).unwrap();
    let state = alice.wait_job(job, SOON).unwrap();
    let output = alice.job_output(job);
    assert_eq!(state, "COMPLETED", "{output}");
    let mut lines: Vec<String> = output.lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

/// Each rank under the name of its node, told by the host: the environment is the first node's.
fn both() -> Vec<String> {
    ["n1", "n2"].iter().map(|node| format!("{node} {}", arn("genomics", "alice", node))).collect()
}

/// Says on which host it is and who it is there.
fn rank(cluster: &testbed::Cluster) -> String {
    format!("echo $(hostname) $({})", whoami(cluster))
}

#[test]
#[cfg_attr(not(all(has_cluster, has_mpi)), ignore = "needs a test cluster and MPICH: run `make deps` as root")]
fn every_rank_of_mpich_is_its_own_nodes() {
    let cluster = cluster();
    let rank = rank(&cluster);
    assert_eq!(batch(&cluster, &format!("mpiexec.hydra -ppn 1 -n 2 bash -c '{rank}'")), both());
    // What makes it hard: the second rank has the first node's token.
    let token = "mpiexec.hydra -ppn 1 -n 2 bash -c 'echo $AWS_CONTAINER_AUTHORIZATION_TOKEN'";
    let tokens = batch(&cluster, token);
    assert!(tokens.len() == 2 && tokens[0] == tokens[1] && tokens[0].starts_with("credd1-"), "no test of anything");
}

#[test]
#[cfg_attr(not(all(has_cluster, has_mpi)), ignore = "needs a test cluster and Open MPI: run `make deps` as root")]
fn every_rank_of_open_mpi_is_its_own_nodes_whatever_is_forwarded() {
    let cluster = cluster();
    let rank = rank(&cluster);
    let forward = "-x AWS_CONTAINER_CREDENTIALS_FULL_URI -x AWS_CONTAINER_AUTHORIZATION_TOKEN";
    for forward in ["", forward] {
        let script = format!("mpirun.openmpi --map-by node -np 2 {forward} bash -c '{rank}'");
        assert_eq!(batch(&cluster, &script), both(), "{forward}");
    }
}

#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
fn a_component_of_a_heterogeneous_job_is_itself_with_the_leaders_environment() {
    let cluster = cluster();
    let alice = cluster.as_user("alice");
    let rank = rank(&cluster);
    // srun gives each component its own; the script gives it the leader's back, as a framework does.
    let script = format!(
        "#SBATCH -N1 -w n1\n#SBATCH hetjob\n#SBATCH -N1 -w n2\n\
         export U=$AWS_CONTAINER_CREDENTIALS_FULL_URI T=$AWS_CONTAINER_AUTHORIZATION_TOKEN\n\
         srun --het-group=1 bash -c 'export AWS_CONTAINER_CREDENTIALS_FULL_URI=$U AWS_CONTAINER_AUTHORIZATION_TOKEN=$T; \
         {rank}'\n"
    );
    let job = alice.sbatch(&script, &[]).unwrap();
    let state = alice.wait_job(job, SOON).unwrap();
    let output = alice.job_output(job);
    assert_eq!(state, "COMPLETED", "{output}");
    assert_eq!(output.trim(), format!("n2 {}", arn("genomics", "alice", "n2")));
}
