# Completion of hitlessctl and hitlessd for bash; belongs into /usr/share/bash-completion/completions/.

_hitlessctl() {
    local cur words cword
    if declare -F _get_comp_words_by_ref >/dev/null; then
        _get_comp_words_by_ref -n := cur words cword
    else
        cur=${COMP_WORDS[COMP_CWORD]} words=("${COMP_WORDS[@]}") cword=$COMP_CWORD
    fi
    local IFS=$'\n' found
    found=($("${words[0]}" _complete "${words[@]:1:cword-1}" "$cur" 2>/dev/null))
    COMPREPLY=()
    local word
    for word in "${found[@]}"; do
        if [[ $word == :files ]]; then
            compopt -o filenames 2>/dev/null
            COMPREPLY+=($(compgen -f -- "$cur"))
        else
            COMPREPLY+=("$word")
        fi
    done
    if declare -F __ltrim_colon_completions >/dev/null; then
        __ltrim_colon_completions "$cur"
    fi
}

_hitlessd() {
    local cur=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD-1]} IFS=$'\n'
    case $previous in
        -f | -p | -x)
            compopt -o filenames 2>/dev/null
            COMPREPLY=($(compgen -f -- "$cur"))
            ;;
        -sf | -st) COMPREPLY=($(compgen -W "$(pgrep -x 'hitlessd|haproxy')" -- "$cur")) ;;
        *) COMPREPLY=($(compgen -W $'-f\n-c\n-p\n-x\n-sf\n-st\n-D\n-W\n-Ws\n-q\n-v\n-vv\n-h\n--help' -- "$cur")) ;;
    esac
}

complete -F _hitlessctl hitlessctl
complete -F _hitlessd hitlessd
