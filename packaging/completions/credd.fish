# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_credd_global_optspecs
    string join \n h/help V/version
end

function __fish_credd_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_credd_global_optspecs) -- $cmd 2>/dev/null
    or return
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_credd_using_subcommand
    set -l cmd (__fish_credd_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c credd -n "__fish_credd_needs_command" -s h -l help -d 'Print help'
complete -c credd -n "__fish_credd_needs_command" -s V -l version -d 'Print version'
complete -c credd -n "__fish_credd_needs_command" -f -a "run" -d 'Run the daemon (as root; it serves jobs through a process without powers)'
complete -c credd -n "__fish_credd_needs_command" -f -a "check-config" -d 'Check the configuration and list everything that is wrong with it'
complete -c credd -n "__fish_credd_needs_command" -f -a "reload" -d 'Have the running credd read its configuration again; exits with 1 if the new one is not in force'
complete -c credd -n "__fish_credd_needs_command" -f -a "status" -d 'Show the jobs on this node: all to root, one\'s own to others'
complete -c credd -n "__fish_credd_needs_command" -f -a "health" -d 'Show whether credd serves jobs and reaches credvend; exits with 0 if so, else with 1'
complete -c credd -n "__fish_credd_needs_command" -f -a "credentials" -d 'Print the AWS credentials of one\'s own job on this node as JSON for credential_process'
complete -c credd -n "__fish_credd_needs_command" -f -a "env" -d 'Print shell commands that set the AWS credentials of one\'s own job on this node as environment variables'
complete -c credd -n "__fish_credd_needs_command" -f -a "metrics" -d 'Print the node\'s metrics for Prometheus, as node_exporter\'s textfile collector takes them'
complete -c credd -n "__fish_credd_using_subcommand run" -l config -d 'The configuration' -r -F
complete -c credd -n "__fish_credd_using_subcommand run" -s h -l help -d 'Print help'
complete -c credd -n "__fish_credd_using_subcommand check-config" -l config -d 'The configuration' -r -F
complete -c credd -n "__fish_credd_using_subcommand check-config" -s h -l help -d 'Print help'
complete -c credd -n "__fish_credd_using_subcommand reload" -l run-dir -d 'The daemon\'s run directory' -r -F
complete -c credd -n "__fish_credd_using_subcommand reload" -s h -l help -d 'Print help'
complete -c credd -n "__fish_credd_using_subcommand status" -l run-dir -d 'The daemon\'s run directory' -r -F
complete -c credd -n "__fish_credd_using_subcommand status" -l json -d 'Print JSON'
complete -c credd -n "__fish_credd_using_subcommand status" -s h -l help -d 'Print help'
complete -c credd -n "__fish_credd_using_subcommand health" -l run-dir -d 'The daemon\'s run directory' -r -F
complete -c credd -n "__fish_credd_using_subcommand health" -l json -d 'Print JSON'
complete -c credd -n "__fish_credd_using_subcommand health" -s h -l help -d 'Print help'
complete -c credd -n "__fish_credd_using_subcommand credentials" -l job -d 'The job, by its raw id (squeue -O JobID); needed outside of a job if several jobs of the user run on this node' -r
complete -c credd -n "__fish_credd_using_subcommand credentials" -l run-dir -d 'The daemon\'s run directory' -r -F
complete -c credd -n "__fish_credd_using_subcommand credentials" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c credd -n "__fish_credd_using_subcommand env" -l job -d 'The job, by its raw id (squeue -O JobID); needed outside of a job if several jobs of the user run on this node' -r
complete -c credd -n "__fish_credd_using_subcommand env" -l run-dir -d 'The daemon\'s run directory' -r -F
complete -c credd -n "__fish_credd_using_subcommand env" -l endpoint -d 'Print AWS_CONTAINER_CREDENTIALS_FULL_URI and a new token instead of keys: they serve until the job ends here'
complete -c credd -n "__fish_credd_using_subcommand env" -l json -d 'Print a JSON object of the variables, with null for one to unset'
complete -c credd -n "__fish_credd_using_subcommand env" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c credd -n "__fish_credd_using_subcommand metrics" -l run-dir -d 'The daemon\'s run directory' -r -F
complete -c credd -n "__fish_credd_using_subcommand metrics" -s h -l help -d 'Print help'
