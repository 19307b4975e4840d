# bash completion for autocvd

_autocvd() {
    local current=${COMP_WORDS[COMP_CWORD]} option=${COMP_WORDS[COMP_CWORD - 1]} at
    COMPREPLY=()

    # After '--' stands COMMAND, completed as if it stood alone.
    for ((at = 1; at < COMP_CWORD; at++)); do
        if [[ ${COMP_WORDS[at]} == -- ]]; then
            _autocvd_command $((at + 1))
            return
        fi
    done

    # readline splits --format=fish into three words.
    if [[ $current == = ]]; then
        current=
    elif [[ $option == = ]]; then
        option=${COMP_WORDS[COMP_CWORD - 2]}
    fi

    case $option in
        -x | --exclude | --only) _autocvd_ids "$current" && return ;;
        --format | --shell) _autocvd_words 'posix fish csh docker cdi' "$current" && return ;;
        --probe) _autocvd_words 'auto nvml nvidia-smi' "$current" && return ;;
        --from)
            compopt -o filenames
            mapfile -t COMPREPLY < <(compgen -f -- "$current")
            return
            ;;
        -n | --num-gpus | -t | --timeout | -i | --interval | --hold | -m | --min-free-memory | --tolerate) return ;;
        completions) _autocvd_words 'bash zsh fish elvish powershell' "$current" && return ;;
    esac

    # Further ids of an option that takes several.
    if [[ $current != -* ]]; then
        for ((at = COMP_CWORD - 1; at > 0; at--)); do
            case ${COMP_WORDS[at]} in
                -x | --exclude | --only) _autocvd_ids "$current" && return ;;
                -*) break ;;
            esac
        done
    fi

    case ${COMP_WORDS[1]} in
        status)
            _autocvd_words '--json --short --watch --from --probe --help' "$current"
            return
            ;;
        completions | doctor | release | man | help) return ;;
    esac
    if [[ $current == -* ]]; then
        _autocvd_words '-- --num-gpus --exclude --only --min-free-memory --share --tolerate --inherit --least-used
            --timeout --interval --source --export --id-only --json --format --uuid --bind --quiet
            --verbose --hold --no-claim --probe --from --help --version' "$current"
    elif ((COMP_CWORD == 1)); then
        _autocvd_words 'status doctor release completions man help --' "$current"
    fi
}

_autocvd_words() {
    mapfile -t COMPREPLY < <(compgen -W "$1" -- "$2")
}

# Offers the indices of the GPUs that are not in the list yet; beside each other with their names.
_autocvd_ids() {
    local list='' current=$1 index about words=() rows=()
    if [[ $current == *,* ]]; then
        list=${current%,*},
        current=${current##*,}
    fi
    while IFS=$'\t' read -r index about; do
        if [[ $index == "$current"* && ,$list != *,"$index",* ]]; then
            words+=("$list$index")
            rows+=("$list$index  ($about)")
        fi
    done < <(autocvd completions ids 2>/dev/null)
    ((${#words[@]})) || return
    if ((${#words[@]} > 1)) && ((COMP_TYPE == 63 || COMP_TYPE == 9)); then
        # Several rows are shown, not inserted.
        COMPREPLY=("${rows[@]}")
    else
        COMPREPLY=("${words[@]}")
    fi
}

# Completes COMMAND, which begins at the word number $1.
_autocvd_command() {
    if declare -F _comp_command_offset >/dev/null; then
        _comp_command_offset "$1"
    elif declare -F _command_offset >/dev/null; then
        _command_offset "$1"
    elif ((COMP_CWORD == $1)); then
        local current=${COMP_WORDS[COMP_CWORD]}
        compopt -o filenames
        mapfile -t COMPREPLY < <(compgen -c -- "$current" | sort -u)
    else
        # Without a completion of its own COMMAND gets readline's: files.
        compopt -o default
    fi
}

complete -F _autocvd autocvd
