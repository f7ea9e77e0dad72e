//! Asks slurmctld through squeue(1), sinfo(1) and scontrol(1).
