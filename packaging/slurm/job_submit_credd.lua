-- Bounds the texts of a job that reach the environment of Slurm's prologs and epilogs.
--
-- Slurm puts what a user wrote (the job's comment, its name, and the SPANK_ variables that a user's own plugin may set)
-- into the environment of every prolog and epilog. One such text of 128 kB makes execve(2) fail, "Argument list too
-- long". On a node with any prolog, spank_credd.so's included, slurmd then drains the node and holds the job; on the head
-- PrologSlurmctld and EpilogSlurmctld are not run. Slurm bounds some of these texts at submission, the SPANK_ variables
-- never, and none when `scontrol update` changes it.
--
-- A cluster has one job_submit.lua, beside slurm.conf on the host of slurmctld. A site that has none takes this file as it
-- is, under that name, with `JobSubmitPlugins=lua` in slurm.conf. A site that has one adds three lines to it:
--
--     dofile("/etc/slurm/job_submit_credd.lua")                                  -- at its top
--     if credd_check_job(job_desc) ~= slurm.SUCCESS then return slurm.ERROR end  -- first in slurm_job_submit
--     if credd_check_job(job_desc) ~= slurm.SUCCESS then return slurm.ERROR end  -- first in slurm_job_modify
--
-- slurm.conf also needs PrologFlags=Alloc (Contain includes it): a prolog that runs at a node's first step instead takes
-- these texts from the user's srun, and slurmctld never sees them. `credvend check-config --online` asks whether both are
-- in force. After a change of this file, touch job_submit.lua: slurmctld looks at that one's time alone.

-- The longest text, in bytes.
local MAX_TEXT = 16384
-- All texts of one request together.
local MAX_TOGETHER = 65536

-- What job_desc calls the texts. A field that this release of Slurm does not have is nil.
local TEXTS = {
    "account", "admin_comment", "burst_buffer", "clusters", "comment", "container", "extra", "features", "gres",
    "licenses", "mail_user", "name", "network", "origin_cluster", "partition", "prefer", "qos", "reservation",
    "selinux_context", "std_err", "std_in", "std_out", "tres_per_job", "tres_per_node", "tres_per_socket",
    "tres_per_task", "wckey", "work_dir",
}

-- What is wrong with the texts of a request, or nil.
local function problem(job_desc)
    local together = 0
    for _, name in ipairs(TEXTS) do
        local text = job_desc[name]
        local bytes = text ~= nil and #tostring(text) or 0
        if bytes > MAX_TEXT then
            return string.format("%s has %d bytes; at most %d are allowed", name, bytes, MAX_TEXT)
        end
        together = together + bytes
    end
    local variables = job_desc.spank_job_env
    if type(variables) == "table" then
        for _, text in pairs(variables) do
            local bytes = #tostring(text)
            if bytes > MAX_TEXT then
                return string.format("a SPANK_ variable has %d bytes; at most %d are allowed", bytes, MAX_TEXT)
            end
            -- With its pointer, as the kernel counts.
            together = together + bytes + 8
        end
    end
    if together > MAX_TOGETHER then
        return string.format("its texts have %d bytes together; at most %d are allowed", together, MAX_TOGETHER)
    end
    return nil
end

-- slurm.SUCCESS, or slurm.ERROR with a message for the user. A mistake in here stops no job.
function credd_check_job(job_desc)
    local looked, found = pcall(problem, job_desc)
    if not looked then
        slurm.log_error("credd_check_job: %s", tostring(found))
        return slurm.SUCCESS
    end
    if found ~= nil then
        slurm.log_info("credd_check_job: refused: %s", found)
        slurm.log_user("credd_check_job: %s", found)
        return slurm.ERROR
    end
    return slurm.SUCCESS
end

-- For the site that takes this file as its job_submit.lua. Another one defines its own after dofile().
function slurm_job_submit(job_desc, part_list, submit_uid)
    return credd_check_job(job_desc)
end

function slurm_job_modify(job_desc, job_rec, part_list, modify_uid)
    return credd_check_job(job_desc)
end
