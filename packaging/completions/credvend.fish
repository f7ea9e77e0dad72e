# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_credvend_global_optspecs
    string join \n config= h/help V/version
end

function __fish_credvend_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_credvend_global_optspecs) -- $cmd 2>/dev/null
    or return
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_credvend_using_subcommand
    set -l cmd (__fish_credvend_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c credvend -n "__fish_credvend_needs_command" -l config -d 'The configuration; also CREDVEND_CONFIG [default: /etc/credvend/credvend.toml]' -r -F
complete -c credvend -n "__fish_credvend_needs_command" -s h -l help -d 'Print help'
complete -c credvend -n "__fish_credvend_needs_command" -s V -l version -d 'Print version'
complete -c credvend -n "__fish_credvend_needs_command" -f -a "serve" -d 'Run the service'
complete -c credvend -n "__fish_credvend_needs_command" -f -a "check-config" -d 'Check the configuration and projects.toml, and tell every problem at once'
complete -c credvend -n "__fish_credvend_needs_command" -f -a "pin" -d 'Print the pin of the server\'s certificate, and the line for the nodes\' credd.toml'
complete -c credvend -n "__fish_credvend_needs_command" -f -a "reload" -d 'Have the running service read projects, head secrets and certificate again; exits with 1 if something is wrong'
complete -c credvend -n "__fish_credvend_needs_command" -f -a "status" -d 'Tell how the running service does'
complete -c credvend -n "__fish_credvend_needs_command" -f -a "session" -d 'Look at sessions, or end one'
complete -c credvend -n "__fish_credvend_needs_command" -f -a "project" -d 'See or change which project has which roles'
complete -c credvend -n "__fish_credvend_needs_command" -f -a "revoke" -d 'End sessions, have the nodes drop what they hold, and deny in AWS what was issued'
complete -c credvend -n "__fish_credvend_needs_command" -f -a "unblock" -d 'Let in again who was kept out with `revoke --block`'
complete -c credvend -n "__fish_credvend_needs_command" -f -a "revocation" -d 'See what was revoked'
complete -c credvend -n "__fish_credvend_needs_command" -f -a "block" -d 'See who is kept out'
complete -c credvend -n "__fish_credvend_needs_command" -f -a "audit" -d 'Tell from the audit log who got which role, when, on which node and under which key id'
complete -c credvend -n "__fish_credvend_needs_command" -f -a "store" -d 'Make the store\'s tables, and say what they need'
complete -c credvend -n "__fish_credvend_needs_command" -f -a "hook" -d 'For PrologSlurmctld and EpilogSlurmctld of a head that pushes its jobs; always exits 0'
complete -c credvend -n "__fish_credvend_needs_command" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c credvend -n "__fish_credvend_using_subcommand serve" -l config -d 'The configuration; also CREDVEND_CONFIG [default: /etc/credvend/credvend.toml]' -r -F
complete -c credvend -n "__fish_credvend_using_subcommand serve" -s h -l help -d 'Print help'
complete -c credvend -n "__fish_credvend_using_subcommand check-config" -l config -d 'The configuration; also CREDVEND_CONFIG [default: /etc/credvend/credvend.toml]' -r -F
complete -c credvend -n "__fish_credvend_using_subcommand check-config" -l online -d 'Also ask Slurm, munged, AWS (or the upstream) and DynamoDB whether they would let jobs have credentials, and Slurm whether it bounds its users\' texts'
complete -c credvend -n "__fish_credvend_using_subcommand check-config" -s h -l help -d 'Print help'
complete -c credvend -n "__fish_credvend_using_subcommand pin" -l config -d 'The configuration; also CREDVEND_CONFIG [default: /etc/credvend/credvend.toml]' -r -F
complete -c credvend -n "__fish_credvend_using_subcommand pin" -l json -d 'For programs'
complete -c credvend -n "__fish_credvend_using_subcommand pin" -s h -l help -d 'Print help'
complete -c credvend -n "__fish_credvend_using_subcommand reload" -l config -d 'The configuration; also CREDVEND_CONFIG [default: /etc/credvend/credvend.toml]' -r -F
complete -c credvend -n "__fish_credvend_using_subcommand reload" -s h -l help -d 'Print help'
complete -c credvend -n "__fish_credvend_using_subcommand status" -l config -d 'The configuration; also CREDVEND_CONFIG [default: /etc/credvend/credvend.toml]' -r -F
complete -c credvend -n "__fish_credvend_using_subcommand status" -l json -d 'For programs'
complete -c credvend -n "__fish_credvend_using_subcommand status" -s h -l help -d 'Print help'
complete -c credvend -n "__fish_credvend_using_subcommand session; and not __fish_seen_subcommand_from list show close help" -l config -d 'The configuration; also CREDVEND_CONFIG [default: /etc/credvend/credvend.toml]' -r -F
complete -c credvend -n "__fish_credvend_using_subcommand session; and not __fish_seen_subcommand_from list show close help" -s h -l help -d 'Print help'
complete -c credvend -n "__fish_credvend_using_subcommand session; and not __fish_seen_subcommand_from list show close help" -f -a "list" -d 'List sessions, newest first'
complete -c credvend -n "__fish_credvend_using_subcommand session; and not __fish_seen_subcommand_from list show close help" -f -a "show" -d 'Show one session, and which credentials it got'
complete -c credvend -n "__fish_credvend_using_subcommand session; and not __fish_seen_subcommand_from list show close help" -f -a "close" -d 'End one session: it gets no more credentials; what it has expires by itself (see `revoke --job`)'
complete -c credvend -n "__fish_credvend_using_subcommand session; and not __fish_seen_subcommand_from list show close help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c credvend -n "__fish_credvend_using_subcommand session; and __fish_seen_subcommand_from list" -l user -d 'Only this user\'s' -r
complete -c credvend -n "__fish_credvend_using_subcommand session; and __fish_seen_subcommand_from list" -l project -d 'Only this project\'s' -r
complete -c credvend -n "__fish_credvend_using_subcommand session; and __fish_seen_subcommand_from list" -l job -d 'Only of this job; of those that a head opened under this number, the newest' -r
complete -c credvend -n "__fish_credvend_using_subcommand session; and __fish_seen_subcommand_from list" -l cluster -d 'Only of this cluster' -r
complete -c credvend -n "__fish_credvend_using_subcommand session; and __fish_seen_subcommand_from list" -l status -d 'Only in this state' -r -f -a "active\t''
invalidated\t''
completed\t''"
complete -c credvend -n "__fish_credvend_using_subcommand session; and __fish_seen_subcommand_from list" -l limit -d 'At most so many' -r
complete -c credvend -n "__fish_credvend_using_subcommand session; and __fish_seen_subcommand_from list" -l config -d 'The configuration; also CREDVEND_CONFIG [default: /etc/credvend/credvend.toml]' -r -F
complete -c credvend -n "__fish_credvend_using_subcommand session; and __fish_seen_subcommand_from list" -l json -d 'For programs'
complete -c credvend -n "__fish_credvend_using_subcommand session; and __fish_seen_subcommand_from list" -s h -l help -d 'Print help'
complete -c credvend -n "__fish_credvend_using_subcommand session; and __fish_seen_subcommand_from show" -l config -d 'The configuration; also CREDVEND_CONFIG [default: /etc/credvend/credvend.toml]' -r -F
complete -c credvend -n "__fish_credvend_using_subcommand session; and __fish_seen_subcommand_from show" -l json -d 'For programs'
complete -c credvend -n "__fish_credvend_using_subcommand session; and __fish_seen_subcommand_from show" -s h -l help -d 'Print help'
complete -c credvend -n "__fish_credvend_using_subcommand session; and __fish_seen_subcommand_from close" -l config -d 'The configuration; also CREDVEND_CONFIG [default: /etc/credvend/credvend.toml]' -r -F
complete -c credvend -n "__fish_credvend_using_subcommand session; and __fish_seen_subcommand_from close" -s h -l help -d 'Print help'
complete -c credvend -n "__fish_credvend_using_subcommand session; and __fish_seen_subcommand_from help" -f -a "list" -d 'List sessions, newest first'
complete -c credvend -n "__fish_credvend_using_subcommand session; and __fish_seen_subcommand_from help" -f -a "show" -d 'Show one session, and which credentials it got'
complete -c credvend -n "__fish_credvend_using_subcommand session; and __fish_seen_subcommand_from help" -f -a "close" -d 'End one session: it gets no more credentials; what it has expires by itself (see `revoke --job`)'
complete -c credvend -n "__fish_credvend_using_subcommand session; and __fish_seen_subcommand_from help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c credvend -n "__fish_credvend_using_subcommand project; and not __fish_seen_subcommand_from list set policy remove help" -l config -d 'The configuration; also CREDVEND_CONFIG [default: /etc/credvend/credvend.toml]' -r -F
complete -c credvend -n "__fish_credvend_using_subcommand project; and not __fish_seen_subcommand_from list set policy remove help" -s h -l help -d 'Print help'
complete -c credvend -n "__fish_credvend_using_subcommand project; and not __fish_seen_subcommand_from list set policy remove help" -f -a "list" -d 'List the projects in force'
complete -c credvend -n "__fish_credvend_using_subcommand project; and not __fish_seen_subcommand_from list set policy remove help" -f -a "set" -d 'Give a project a role, or change it, in projects.toml'
complete -c credvend -n "__fish_credvend_using_subcommand project; and not __fish_seen_subcommand_from list set policy remove help" -f -a "policy" -d 'Print the AWS policies that credvend, its revoker roles and the projects\' roles need'
complete -c credvend -n "__fish_credvend_using_subcommand project; and not __fish_seen_subcommand_from list set policy remove help" -f -a "remove" -d 'Take a project\'s role away, or the whole project, in projects.toml'
complete -c credvend -n "__fish_credvend_using_subcommand project; and not __fish_seen_subcommand_from list set policy remove help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c credvend -n "__fish_credvend_using_subcommand project; and __fish_seen_subcommand_from list" -l config -d 'The configuration; also CREDVEND_CONFIG [default: /etc/credvend/credvend.toml]' -r -F
complete -c credvend -n "__fish_credvend_using_subcommand project; and __fish_seen_subcommand_from list" -l json -d 'For programs'
complete -c credvend -n "__fish_credvend_using_subcommand project; and __fish_seen_subcommand_from list" -s h -l help -d 'Print help'
complete -c credvend -n "__fish_credvend_using_subcommand project; and __fish_seen_subcommand_from set" -l role-arn -d 'arn:aws:iam::123456789012:role/NAME' -r
complete -c credvend -n "__fish_credvend_using_subcommand project; and __fish_seen_subcommand_from set" -l role -d 'The role\'s name within the project' -r
complete -c credvend -n "__fish_credvend_using_subcommand project; and __fish_seen_subcommand_from set" -l duration -d 'How long its credentials live: 15m to 12h' -r
complete -c credvend -n "__fish_credvend_using_subcommand project; and __fish_seen_subcommand_from set" -l account -d 'The Slurm account, where it is not the project\'s name in lower case' -r
complete -c credvend -n "__fish_credvend_using_subcommand project; and __fish_seen_subcommand_from set" -l cluster -d 'A cluster whose jobs may be of the project; may be repeated. Replaces those that it has' -r
complete -c credvend -n "__fish_credvend_using_subcommand project; and __fish_seen_subcommand_from set" -l source-identity -d 'Send SourceIdentity; the role must trust sts:SetSourceIdentity' -r -f -a "true\t''
false\t''"
complete -c credvend -n "__fish_credvend_using_subcommand project; and __fish_seen_subcommand_from set" -l session-tags -d 'Send session tags; the role must trust sts:TagSession' -r -f -a "true\t''
false\t''"
complete -c credvend -n "__fish_credvend_using_subcommand project; and __fish_seen_subcommand_from set" -l session-name -d 'The role-session name in AWS, such as {cluster}-{user}-{job}' -r
complete -c credvend -n "__fish_credvend_using_subcommand project; and __fish_seen_subcommand_from set" -l revoke-on-end -d 'Deny in AWS what a job got when it ends' -r -f -a "true\t''
false\t''"
complete -c credvend -n "__fish_credvend_using_subcommand project; and __fish_seen_subcommand_from set" -l config -d 'The configuration; also CREDVEND_CONFIG [default: /etc/credvend/credvend.toml]' -r -F
complete -c credvend -n "__fish_credvend_using_subcommand project; and __fish_seen_subcommand_from set" -s h -l help -d 'Print help'
complete -c credvend -n "__fish_credvend_using_subcommand project; and __fish_seen_subcommand_from policy" -l principal -d 'Whom the trust policies name: credvend\'s own IAM user or role; by default who the running service is' -r
complete -c credvend -n "__fish_credvend_using_subcommand project; and __fish_seen_subcommand_from policy" -l allow -d 'What the projects\' roles may do at most; may be repeated' -r
complete -c credvend -n "__fish_credvend_using_subcommand project; and __fish_seen_subcommand_from policy" -l config -d 'The configuration; also CREDVEND_CONFIG [default: /etc/credvend/credvend.toml]' -r -F
complete -c credvend -n "__fish_credvend_using_subcommand project; and __fish_seen_subcommand_from policy" -l json -d 'For programs'
complete -c credvend -n "__fish_credvend_using_subcommand project; and __fish_seen_subcommand_from policy" -s h -l help -d 'Print help'
complete -c credvend -n "__fish_credvend_using_subcommand project; and __fish_seen_subcommand_from remove" -l role -d 'Only this role' -r
complete -c credvend -n "__fish_credvend_using_subcommand project; and __fish_seen_subcommand_from remove" -l config -d 'The configuration; also CREDVEND_CONFIG [default: /etc/credvend/credvend.toml]' -r -F
complete -c credvend -n "__fish_credvend_using_subcommand project; and __fish_seen_subcommand_from remove" -s h -l help -d 'Print help'
complete -c credvend -n "__fish_credvend_using_subcommand project; and __fish_seen_subcommand_from help" -f -a "list" -d 'List the projects in force'
complete -c credvend -n "__fish_credvend_using_subcommand project; and __fish_seen_subcommand_from help" -f -a "set" -d 'Give a project a role, or change it, in projects.toml'
complete -c credvend -n "__fish_credvend_using_subcommand project; and __fish_seen_subcommand_from help" -f -a "policy" -d 'Print the AWS policies that credvend, its revoker roles and the projects\' roles need'
complete -c credvend -n "__fish_credvend_using_subcommand project; and __fish_seen_subcommand_from help" -f -a "remove" -d 'Take a project\'s role away, or the whole project, in projects.toml'
complete -c credvend -n "__fish_credvend_using_subcommand project; and __fish_seen_subcommand_from help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c credvend -n "__fish_credvend_using_subcommand revoke" -l user -d 'Exactly this user, by login name' -r
complete -c credvend -n "__fish_credvend_using_subcommand revoke" -l project -d 'Exactly this project, as in projects.toml' -r
complete -c credvend -n "__fish_credvend_using_subcommand revoke" -l job -d 'This Slurm job, every run of it so far: CLUSTER/JOB, or JOB with --cluster. A task of an array and a component of a heterogeneous job are jobs of their own, by their raw ids' -r
complete -c credvend -n "__fish_credvend_using_subcommand revoke" -l node -d 'Every job that has this node: CLUSTER/NODE, or NODE with --cluster' -r
complete -c credvend -n "__fish_credvend_using_subcommand revoke" -l role -d 'Every job of a project that has this role, and whoever was issued its credentials' -r
complete -c credvend -n "__fish_credvend_using_subcommand revoke" -l cluster -d 'Only on this cluster; may be repeated' -r
complete -c credvend -n "__fish_credvend_using_subcommand revoke" -l why -d 'For the job\'s user, the audit log and `credvend revocation list`' -r
complete -c credvend -n "__fish_credvend_using_subcommand revoke" -l config -d 'The configuration; also CREDVEND_CONFIG [default: /etc/credvend/credvend.toml]' -r -F
complete -c credvend -n "__fish_credvend_using_subcommand revoke" -l dry-run -d 'Change nothing, and tell what would happen'
complete -c credvend -n "__fish_credvend_using_subcommand revoke" -l wide -d 'Deny everything that was issued of the roles concerned, to whomever'
complete -c credvend -n "__fish_credvend_using_subcommand revoke" -l block -d 'Keep the user, project, node or role out until `credvend unblock`'
complete -c credvend -n "__fish_credvend_using_subcommand revoke" -l json -d 'For programs'
complete -c credvend -n "__fish_credvend_using_subcommand revoke" -s h -l help -d 'Print help'
complete -c credvend -n "__fish_credvend_using_subcommand unblock" -l user -d 'Exactly this user, by login name' -r
complete -c credvend -n "__fish_credvend_using_subcommand unblock" -l project -d 'Exactly this project, as in projects.toml' -r
complete -c credvend -n "__fish_credvend_using_subcommand unblock" -l job -d 'This Slurm job, every run of it so far: CLUSTER/JOB, or JOB with --cluster. A task of an array and a component of a heterogeneous job are jobs of their own, by their raw ids' -r
complete -c credvend -n "__fish_credvend_using_subcommand unblock" -l node -d 'Every job that has this node: CLUSTER/NODE, or NODE with --cluster' -r
complete -c credvend -n "__fish_credvend_using_subcommand unblock" -l role -d 'Every job of a project that has this role, and whoever was issued its credentials' -r
complete -c credvend -n "__fish_credvend_using_subcommand unblock" -l cluster -d 'Of a node' -r
complete -c credvend -n "__fish_credvend_using_subcommand unblock" -l config -d 'The configuration; also CREDVEND_CONFIG [default: /etc/credvend/credvend.toml]' -r -F
complete -c credvend -n "__fish_credvend_using_subcommand unblock" -l json -d 'For programs'
complete -c credvend -n "__fish_credvend_using_subcommand unblock" -s h -l help -d 'Print help'
complete -c credvend -n "__fish_credvend_using_subcommand revocation; and not __fish_seen_subcommand_from list show help" -l config -d 'The configuration; also CREDVEND_CONFIG [default: /etc/credvend/credvend.toml]' -r -F
complete -c credvend -n "__fish_credvend_using_subcommand revocation; and not __fish_seen_subcommand_from list show help" -s h -l help -d 'Print help'
complete -c credvend -n "__fish_credvend_using_subcommand revocation; and not __fish_seen_subcommand_from list show help" -f -a "list" -d 'List revocations, newest first, and who is kept out'
complete -c credvend -n "__fish_credvend_using_subcommand revocation; and not __fish_seen_subcommand_from list show help" -f -a "show" -d 'Show one revocation\'s report, as far as it is known by now'
complete -c credvend -n "__fish_credvend_using_subcommand revocation; and not __fish_seen_subcommand_from list show help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c credvend -n "__fish_credvend_using_subcommand revocation; and __fish_seen_subcommand_from list" -l limit -d 'At most so many' -r
complete -c credvend -n "__fish_credvend_using_subcommand revocation; and __fish_seen_subcommand_from list" -l config -d 'The configuration; also CREDVEND_CONFIG [default: /etc/credvend/credvend.toml]' -r -F
complete -c credvend -n "__fish_credvend_using_subcommand revocation; and __fish_seen_subcommand_from list" -l json -d 'For programs: the revocations alone'
complete -c credvend -n "__fish_credvend_using_subcommand revocation; and __fish_seen_subcommand_from list" -s h -l help -d 'Print help'
complete -c credvend -n "__fish_credvend_using_subcommand revocation; and __fish_seen_subcommand_from show" -l config -d 'The configuration; also CREDVEND_CONFIG [default: /etc/credvend/credvend.toml]' -r -F
complete -c credvend -n "__fish_credvend_using_subcommand revocation; and __fish_seen_subcommand_from show" -l json -d 'For programs'
complete -c credvend -n "__fish_credvend_using_subcommand revocation; and __fish_seen_subcommand_from show" -s h -l help -d 'Print help'
complete -c credvend -n "__fish_credvend_using_subcommand revocation; and __fish_seen_subcommand_from help" -f -a "list" -d 'List revocations, newest first, and who is kept out'
complete -c credvend -n "__fish_credvend_using_subcommand revocation; and __fish_seen_subcommand_from help" -f -a "show" -d 'Show one revocation\'s report, as far as it is known by now'
complete -c credvend -n "__fish_credvend_using_subcommand revocation; and __fish_seen_subcommand_from help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c credvend -n "__fish_credvend_using_subcommand block; and not __fish_seen_subcommand_from list help" -l config -d 'The configuration; also CREDVEND_CONFIG [default: /etc/credvend/credvend.toml]' -r -F
complete -c credvend -n "__fish_credvend_using_subcommand block; and not __fish_seen_subcommand_from list help" -s h -l help -d 'Print help'
complete -c credvend -n "__fish_credvend_using_subcommand block; and not __fish_seen_subcommand_from list help" -f -a "list" -d 'List who is kept out'
complete -c credvend -n "__fish_credvend_using_subcommand block; and not __fish_seen_subcommand_from list help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c credvend -n "__fish_credvend_using_subcommand block; and __fish_seen_subcommand_from list" -l config -d 'The configuration; also CREDVEND_CONFIG [default: /etc/credvend/credvend.toml]' -r -F
complete -c credvend -n "__fish_credvend_using_subcommand block; and __fish_seen_subcommand_from list" -l json -d 'For programs'
complete -c credvend -n "__fish_credvend_using_subcommand block; and __fish_seen_subcommand_from list" -s h -l help -d 'Print help'
complete -c credvend -n "__fish_credvend_using_subcommand block; and __fish_seen_subcommand_from help" -f -a "list" -d 'List who is kept out'
complete -c credvend -n "__fish_credvend_using_subcommand block; and __fish_seen_subcommand_from help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c credvend -n "__fish_credvend_using_subcommand audit" -l user -d 'Only of this user' -r
complete -c credvend -n "__fish_credvend_using_subcommand audit" -l project -d 'Only of this project' -r
complete -c credvend -n "__fish_credvend_using_subcommand audit" -l job -d 'Only of this job, whether Slurm or a head stated it' -r
complete -c credvend -n "__fish_credvend_using_subcommand audit" -l cluster -d 'Only of this cluster' -r
complete -c credvend -n "__fish_credvend_using_subcommand audit" -l node -d 'Only of this node' -r
complete -c credvend -n "__fish_credvend_using_subcommand audit" -l session -d 'Only of this session (its UUID)' -r
complete -c credvend -n "__fish_credvend_using_subcommand audit" -l role -d 'Only of this role: its ARN, or its name within the project' -r
complete -c credvend -n "__fish_credvend_using_subcommand audit" -l key-id -d 'Only about this access key id, as CloudTrail has it' -r
complete -c credvend -n "__fish_credvend_using_subcommand audit" -l session-name -d 'Only of this role-session name' -r
complete -c credvend -n "__fish_credvend_using_subcommand audit" -l event -d 'Only this kind of event, or several, separated by commas' -r -f -a "service-started\t''
service-stopped\t''
lines-lost\t''
refusals-omitted\t''
session-opened\t''
token-replaced\t''
session-ended\t''
credentials-issued\t''
credentials-delivered\t''
refused\t''
revocation-ordered\t''
revocation-done\t''
blocked\t''
unblocked\t''
deny-in-force\t''
deny-failed\t''
projects-changed\t''"
complete -c credvend -n "__fish_credvend_using_subcommand audit" -l since -d 'Not earlier: a time (2026-01-31T12:00:00Z) or an age (30m, 2h, 7d)' -r
complete -c credvend -n "__fish_credvend_using_subcommand audit" -l until -d 'Earlier than this' -r
complete -c credvend -n "__fish_credvend_using_subcommand audit" -l file -d 'Read this file alone, - for the standard input; may be given several times' -r -F
complete -c credvend -n "__fish_credvend_using_subcommand audit" -l config -d 'The configuration; also CREDVEND_CONFIG [default: /etc/credvend/credvend.toml]' -r -F
complete -c credvend -n "__fish_credvend_using_subcommand audit" -l follow -d 'Go on with what is written from now on'
complete -c credvend -n "__fish_credvend_using_subcommand audit" -l json -d 'The lines as they are'
complete -c credvend -n "__fish_credvend_using_subcommand audit" -s h -l help -d 'Print help'
complete -c credvend -n "__fish_credvend_using_subcommand store; and not __fish_seen_subcommand_from init copy policy help" -l config -d 'The configuration; also CREDVEND_CONFIG [default: /etc/credvend/credvend.toml]' -r -F
complete -c credvend -n "__fish_credvend_using_subcommand store; and not __fish_seen_subcommand_from init copy policy help" -s h -l help -d 'Print help'
complete -c credvend -n "__fish_credvend_using_subcommand store; and not __fish_seen_subcommand_from init copy policy help" -f -a "init" -d 'Make the DynamoDB tables that are missing, protect them, and wait until they can be used'
complete -c credvend -n "__fish_credvend_using_subcommand store; and not __fish_seen_subcommand_from init copy policy help" -f -a "copy" -d 'Copy everything from one store to the other of this configuration, while no credvend runs'
complete -c credvend -n "__fish_credvend_using_subcommand store; and not __fish_seen_subcommand_from init copy policy help" -f -a "policy" -d 'Print the IAM policy that lets credvend use its DynamoDB tables, whatever [store] kind is'
complete -c credvend -n "__fish_credvend_using_subcommand store; and not __fish_seen_subcommand_from init copy policy help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c credvend -n "__fish_credvend_using_subcommand store; and __fish_seen_subcommand_from init" -l config -d 'The configuration; also CREDVEND_CONFIG [default: /etc/credvend/credvend.toml]' -r -F
complete -c credvend -n "__fish_credvend_using_subcommand store; and __fish_seen_subcommand_from init" -l new-epoch -d 'Say that this is another store than before, so that every node asks anew: after a restore from a backup'
complete -c credvend -n "__fish_credvend_using_subcommand store; and __fish_seen_subcommand_from init" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c credvend -n "__fish_credvend_using_subcommand store; and __fish_seen_subcommand_from copy" -l from -d 'Where everything is' -r -f -a "sqlite\t'One file, one credvend'
dynamodb\t'Tables of AWS, any number of credvends'"
complete -c credvend -n "__fish_credvend_using_subcommand store; and __fish_seen_subcommand_from copy" -l to -d 'Where it is to be' -r -f -a "sqlite\t'One file, one credvend'
dynamodb\t'Tables of AWS, any number of credvends'"
complete -c credvend -n "__fish_credvend_using_subcommand store; and __fish_seen_subcommand_from copy" -l config -d 'The configuration; also CREDVEND_CONFIG [default: /etc/credvend/credvend.toml]' -r -F
complete -c credvend -n "__fish_credvend_using_subcommand store; and __fish_seen_subcommand_from copy" -l resume -d 'Make a copy that was cut off again, over what is there'
complete -c credvend -n "__fish_credvend_using_subcommand store; and __fish_seen_subcommand_from copy" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c credvend -n "__fish_credvend_using_subcommand store; and __fish_seen_subcommand_from policy" -l account -d 'The twelve digits of the tables\' account' -r
complete -c credvend -n "__fish_credvend_using_subcommand store; and __fish_seen_subcommand_from policy" -l config -d 'The configuration; also CREDVEND_CONFIG [default: /etc/credvend/credvend.toml]' -r -F
complete -c credvend -n "__fish_credvend_using_subcommand store; and __fish_seen_subcommand_from policy" -s h -l help -d 'Print help'
complete -c credvend -n "__fish_credvend_using_subcommand store; and __fish_seen_subcommand_from help" -f -a "init" -d 'Make the DynamoDB tables that are missing, protect them, and wait until they can be used'
complete -c credvend -n "__fish_credvend_using_subcommand store; and __fish_seen_subcommand_from help" -f -a "copy" -d 'Copy everything from one store to the other of this configuration, while no credvend runs'
complete -c credvend -n "__fish_credvend_using_subcommand store; and __fish_seen_subcommand_from help" -f -a "policy" -d 'Print the IAM policy that lets credvend use its DynamoDB tables, whatever [store] kind is'
complete -c credvend -n "__fish_credvend_using_subcommand store; and __fish_seen_subcommand_from help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c credvend -n "__fish_credvend_using_subcommand hook" -l hook-config -d 'Where credvend is, and the head\'s secret' -r -F
complete -c credvend -n "__fish_credvend_using_subcommand hook" -l config -d 'The configuration; also CREDVEND_CONFIG [default: /etc/credvend/credvend.toml]' -r -F
complete -c credvend -n "__fish_credvend_using_subcommand hook" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c credvend -n "__fish_credvend_using_subcommand help; and not __fish_seen_subcommand_from serve check-config pin reload status session project revoke unblock revocation block audit store hook help" -f -a "serve" -d 'Run the service'
complete -c credvend -n "__fish_credvend_using_subcommand help; and not __fish_seen_subcommand_from serve check-config pin reload status session project revoke unblock revocation block audit store hook help" -f -a "check-config" -d 'Check the configuration and projects.toml, and tell every problem at once'
complete -c credvend -n "__fish_credvend_using_subcommand help; and not __fish_seen_subcommand_from serve check-config pin reload status session project revoke unblock revocation block audit store hook help" -f -a "pin" -d 'Print the pin of the server\'s certificate, and the line for the nodes\' credd.toml'
complete -c credvend -n "__fish_credvend_using_subcommand help; and not __fish_seen_subcommand_from serve check-config pin reload status session project revoke unblock revocation block audit store hook help" -f -a "reload" -d 'Have the running service read projects, head secrets and certificate again; exits with 1 if something is wrong'
complete -c credvend -n "__fish_credvend_using_subcommand help; and not __fish_seen_subcommand_from serve check-config pin reload status session project revoke unblock revocation block audit store hook help" -f -a "status" -d 'Tell how the running service does'
complete -c credvend -n "__fish_credvend_using_subcommand help; and not __fish_seen_subcommand_from serve check-config pin reload status session project revoke unblock revocation block audit store hook help" -f -a "session" -d 'Look at sessions, or end one'
complete -c credvend -n "__fish_credvend_using_subcommand help; and not __fish_seen_subcommand_from serve check-config pin reload status session project revoke unblock revocation block audit store hook help" -f -a "project" -d 'See or change which project has which roles'
complete -c credvend -n "__fish_credvend_using_subcommand help; and not __fish_seen_subcommand_from serve check-config pin reload status session project revoke unblock revocation block audit store hook help" -f -a "revoke" -d 'End sessions, have the nodes drop what they hold, and deny in AWS what was issued'
complete -c credvend -n "__fish_credvend_using_subcommand help; and not __fish_seen_subcommand_from serve check-config pin reload status session project revoke unblock revocation block audit store hook help" -f -a "unblock" -d 'Let in again who was kept out with `revoke --block`'
complete -c credvend -n "__fish_credvend_using_subcommand help; and not __fish_seen_subcommand_from serve check-config pin reload status session project revoke unblock revocation block audit store hook help" -f -a "revocation" -d 'See what was revoked'
complete -c credvend -n "__fish_credvend_using_subcommand help; and not __fish_seen_subcommand_from serve check-config pin reload status session project revoke unblock revocation block audit store hook help" -f -a "block" -d 'See who is kept out'
complete -c credvend -n "__fish_credvend_using_subcommand help; and not __fish_seen_subcommand_from serve check-config pin reload status session project revoke unblock revocation block audit store hook help" -f -a "audit" -d 'Tell from the audit log who got which role, when, on which node and under which key id'
complete -c credvend -n "__fish_credvend_using_subcommand help; and not __fish_seen_subcommand_from serve check-config pin reload status session project revoke unblock revocation block audit store hook help" -f -a "store" -d 'Make the store\'s tables, and say what they need'
complete -c credvend -n "__fish_credvend_using_subcommand help; and not __fish_seen_subcommand_from serve check-config pin reload status session project revoke unblock revocation block audit store hook help" -f -a "hook" -d 'For PrologSlurmctld and EpilogSlurmctld of a head that pushes its jobs; always exits 0'
complete -c credvend -n "__fish_credvend_using_subcommand help; and not __fish_seen_subcommand_from serve check-config pin reload status session project revoke unblock revocation block audit store hook help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c credvend -n "__fish_credvend_using_subcommand help; and __fish_seen_subcommand_from session" -f -a "list" -d 'List sessions, newest first'
complete -c credvend -n "__fish_credvend_using_subcommand help; and __fish_seen_subcommand_from session" -f -a "show" -d 'Show one session, and which credentials it got'
complete -c credvend -n "__fish_credvend_using_subcommand help; and __fish_seen_subcommand_from session" -f -a "close" -d 'End one session: it gets no more credentials; what it has expires by itself (see `revoke --job`)'
complete -c credvend -n "__fish_credvend_using_subcommand help; and __fish_seen_subcommand_from project" -f -a "list" -d 'List the projects in force'
complete -c credvend -n "__fish_credvend_using_subcommand help; and __fish_seen_subcommand_from project" -f -a "set" -d 'Give a project a role, or change it, in projects.toml'
complete -c credvend -n "__fish_credvend_using_subcommand help; and __fish_seen_subcommand_from project" -f -a "policy" -d 'Print the AWS policies that credvend, its revoker roles and the projects\' roles need'
complete -c credvend -n "__fish_credvend_using_subcommand help; and __fish_seen_subcommand_from project" -f -a "remove" -d 'Take a project\'s role away, or the whole project, in projects.toml'
complete -c credvend -n "__fish_credvend_using_subcommand help; and __fish_seen_subcommand_from revocation" -f -a "list" -d 'List revocations, newest first, and who is kept out'
complete -c credvend -n "__fish_credvend_using_subcommand help; and __fish_seen_subcommand_from revocation" -f -a "show" -d 'Show one revocation\'s report, as far as it is known by now'
complete -c credvend -n "__fish_credvend_using_subcommand help; and __fish_seen_subcommand_from block" -f -a "list" -d 'List who is kept out'
complete -c credvend -n "__fish_credvend_using_subcommand help; and __fish_seen_subcommand_from store" -f -a "init" -d 'Make the DynamoDB tables that are missing, protect them, and wait until they can be used'
complete -c credvend -n "__fish_credvend_using_subcommand help; and __fish_seen_subcommand_from store" -f -a "copy" -d 'Copy everything from one store to the other of this configuration, while no credvend runs'
complete -c credvend -n "__fish_credvend_using_subcommand help; and __fish_seen_subcommand_from store" -f -a "policy" -d 'Print the IAM policy that lets credvend use its DynamoDB tables, whatever [store] kind is'
