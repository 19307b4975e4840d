# fish completion for autocvd

# Whether the cursor is in COMMAND, after '--'.
function __autocvd_in_command
    contains -- -- (commandline -opc)
end

# Whether no subcommand and no COMMAND has begun.
function __autocvd_main
    not __autocvd_in_command
    and not __autocvd_sub status doctor release completions man help
end

function __autocvd_sub
    set -l words (commandline -opc)
    set -q words[2]
    and contains -- $words[2] $argv
end

# Completes COMMAND as if it stood alone.
function __autocvd_command
    set -l words (commandline -opc)
    set -l at (contains -i -- -- $words)
    or return
    set -l before
    if test $at -lt (count $words)
        set before (string escape -- $words[(math $at + 1)..-1])
    end
    complete -C (string join ' ' -- $before (commandline -ct))
end

function __autocvd_ids
    # What stands in front of the last comma stays.
    set -l list (string match -r '.*,' -- (commandline -ct))
    autocvd completions ids 2>/dev/null | string replace -r '^' "$list"
end

# Whether an option that takes several ids stands last.
function __autocvd_wants_id
    __autocvd_main
    or return
    for word in (commandline -opc)[-1..2]
        switch $word
            case -x --exclude --only
                return 0
            case '-*'
                return 1
        end
    end
    return 1
end

complete -c autocvd -f
complete -c autocvd -n __autocvd_in_command -a '(__autocvd_command)'
complete -c autocvd -n __autocvd_wants_id -a '(__autocvd_ids)'

complete -c autocvd -n '__autocvd_main; and test (count (commandline -opc)) -eq 1' -a status -d 'Show which GPUs are free'
complete -c autocvd -n '__autocvd_main; and test (count (commandline -opc)) -eq 1' -a completions -d 'Print completions for a shell'
complete -c autocvd -n '__autocvd_main; and test (count (commandline -opc)) -eq 1' -a doctor -d 'Show what is found here, and what is not well'
complete -c autocvd -n '__autocvd_main; and test (count (commandline -opc)) -eq 1' -a release -d 'End the claims that this shell holds'
complete -c autocvd -n '__autocvd_main; and test (count (commandline -opc)) -eq 1' -a man -d 'Print the manual page'
complete -c autocvd -n '__autocvd_main; and test (count (commandline -opc)) -eq 1' -a help -d 'Print help'
complete -c autocvd -n __autocvd_main -a -- -d 'Become the command that follows'

complete -c autocvd -n __autocvd_main -s n -l num-gpus -x -d 'How many GPUs'
complete -c autocvd -n __autocvd_main -s x -l exclude -x -a '(__autocvd_ids)' -d 'Leave these GPUs out'
complete -c autocvd -n __autocvd_main -l only -x -a '(__autocvd_ids)' -d 'Choose among these GPUs alone'
complete -c autocvd -n __autocvd_main -l tolerate -x -d 'Count GPUs as free whose idle processes hold at most this'
complete -c autocvd -n __autocvd_main -l share -d 'With -m: take a share of so much memory'
complete -c autocvd -n __autocvd_main -s m -l min-free-memory -x -d 'Only GPUs with this much free memory'
complete -c autocvd -n __autocvd_main -l inherit -d 'Choose among the GPUs of CUDA_VISIBLE_DEVICES'
complete -c autocvd -n __autocvd_main -s l -l least-used -d 'Never wait: take those with the most free memory'
complete -c autocvd -n __autocvd_main -s t -l timeout -x -d 'Give up after this time'
complete -c autocvd -n __autocvd_main -s i -l interval -x -d 'Re-check at least this often'
complete -c autocvd -n __autocvd_main -s s -l source -d 'Print export …'
complete -c autocvd -n __autocvd_main -s e -l export -d 'Print export …'
complete -c autocvd -n __autocvd_main -s o -l id-only -d 'Print the ids alone'
complete -c autocvd -n __autocvd_main -l json -d 'Print the choice as JSON'
complete -c autocvd -n __autocvd_main -l format -x -a 'posix fish csh docker cdi' -d 'The syntax to print'
complete -c autocvd -n __autocvd_main -l shell -x -a 'posix fish csh docker cdi' -d 'The syntax to print'
complete -c autocvd -n __autocvd_main -l uuid -d 'Print UUIDs, not indices'
complete -c autocvd -n __autocvd_main -l bind -d 'Pin COMMAND to the CPU cores near its GPUs'
complete -c autocvd -n __autocvd_main -s q -l quiet -d 'Nothing on stderr but errors and what is not claimed'
complete -c autocvd -n __autocvd_main -s v -l verbose -d 'Explain what is done and why'
complete -c autocvd -n __autocvd_main -l hold -x -d 'Reserve printed GPUs this long'
complete -c autocvd -n __autocvd_main -l no-claim -d 'Ignore claims and make none'
complete -c autocvd -n __autocvd_main -l probe -x -a 'auto nvml nvidia-smi' -d 'Where to read the state'
complete -c autocvd -n __autocvd_main -l from -r -F -d 'Read the state from a file'
complete -c autocvd -n __autocvd_main -s h -l help -d 'Print help'
complete -c autocvd -n __autocvd_main -s V -l version -d 'Print the version'

complete -c autocvd -n '__autocvd_sub status' -l json -d 'Print JSON'
complete -c autocvd -n '__autocvd_sub status' -l short -d 'Print one line'
complete -c autocvd -n '__autocvd_sub status' -l watch -d 'Show again and again'
complete -c autocvd -n '__autocvd_sub status' -l from -r -F -d 'Read the state from a file'
complete -c autocvd -n '__autocvd_sub status' -l probe -x -a 'auto nvml nvidia-smi' -d 'Where to read the state'
complete -c autocvd -n '__autocvd_sub status' -s h -l help -d 'Print help'
complete -c autocvd -n '__autocvd_sub completions' -a 'bash zsh fish elvish powershell'
