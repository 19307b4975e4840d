#compdef autocvd
# zsh completion for autocvd

_autocvd() {
    # After '--' stands COMMAND, completed as if it stood alone.
    local -i at=${words[(i)--]}
    if (( at < CURRENT )); then
        shift at words
        (( CURRENT -= at ))
        _normal
        return
    fi

    case $words[2] in
        status)
            if (( CURRENT > 2 )); then
                _arguments -s \
                    ':: :' \
                    '--json[print JSON]' \
                    '--short[print one line]' \
                    '--watch=-[show again and again]::seconds' \
                    '--from=[read the state from a file]:file:_files' \
                    '--probe=[where to read the state]:source:(auto nvml nvidia-smi)' \
                    '(- *)'{-h,--help}'[print help]'
                return
            fi
            ;;
        completions)
            if (( CURRENT > 2 )); then
                _values 'shell' bash zsh fish elvish powershell
                return
            fi
            ;;
        doctor | release | man | help)
            if (( CURRENT > 2 )); then
                return 1
            fi
            ;;
    esac

    local -a first
    if (( CURRENT == 2 )); then
        first=('1: :_autocvd_first')
    else
        first=('*: :_autocvd_rest')
    fi
    _arguments -s \
        '(-n --num-gpus)'{-n+,--num-gpus=}'[how many GPUs]:number' \
        '*'{-x+,--exclude=}'[leave these GPUs out]:GPU:_autocvd_ids' \
        '--only=[choose among these GPUs alone]:GPU:_autocvd_ids' \
        '--tolerate=[count GPUs as free whose idle processes hold at most this]:size' \
        '(-m --min-free-memory)'{-m+,--min-free-memory=}'[only GPUs with this much free memory]:size' \
        '--share[with -m: take a share of so much memory]' \
        '--inherit[choose among the GPUs of CUDA_VISIBLE_DEVICES]' \
        '(-l --least-used)'{-l,--least-used}'[never wait: take those with the most free memory]' \
        '(-t --timeout)'{-t+,--timeout=}'[give up after this time]:time' \
        '(-i --interval)'{-i+,--interval=}'[re-check at least this often]:time' \
        '(-s -e --source --export)'{-s,-e,--source,--export}'[print export …]' \
        '(-o --id-only)'{-o,--id-only}'[print the ids alone]' \
        '--json[print the choice as JSON]' \
        '(--format --shell)'{--format=,--shell=}'[the syntax to print]:format:(posix fish csh docker cdi)' \
        '--uuid[print UUIDs, not indices]' \
        '--bind[pin COMMAND to the CPU cores near its GPUs]' \
        '(-q --quiet)'{-q,--quiet}'[nothing on stderr but errors and what is not claimed]' \
        '*'{-v,--verbose}'[explain what is done and why]' \
        '--hold=[reserve printed GPUs this long]:time' \
        '--no-claim[ignore claims and make none]' \
        '--probe=[where to read the state]:source:(auto nvml nvidia-smi)' \
        '--from=[read the state from a file]:file:_files' \
        '(- *)'{-h,--help}'[print help]' \
        '(- *)'{-V,--version}'[print the version]' \
        $first
}

_autocvd_first() {
    local -a commands=(
        'status:show which GPUs are free, and who is on the others'
        'release:end the claims that this shell holds'
        'completions:print completions for a shell'
        'doctor:show what is found here, and what is not well'
        'man:print the manual page'
        'help:print help'
        '--:become the command that follows'
    )
    _describe -t commands 'subcommand' commands
}

# Further ids of an option that takes several.
_autocvd_rest() {
    local -i at
    for (( at = CURRENT - 1; at > 1; at-- )); do
        case $words[at] in
            -x | --exclude | --only) _autocvd_ids; return ;;
            -*) break ;;
        esac
    done
    return 1
}

_autocvd_ids() {
    local -a ids
    ids=(${(f)"$(autocvd completions ids 2>/dev/null)"})
    # A colon begins the description.
    ids=(${ids/$'\t'/:})
    compset -P '*,'
    _describe -t gpus 'GPU' ids
}

if [[ $funcstack[1] == _autocvd ]]; then
    _autocvd "$@"
else
    compdef _autocvd autocvd
fi
