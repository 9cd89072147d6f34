%% -*- erlang -*-
%% Writes RabbitMQ's definitions with the hashes of the passwords that the Secret holds, and Erlang's cookie.
%%   escript definitions.escript TEMPLATE SECRETS_FOLDER OUTPUT_FOLDER
main([Template, Secrets, Out]) ->
    {ok, Text} = file:read_file(Template),
    Filled = lists:foldl(
        fun(Name, T) -> binary:replace(T, <<"@", Name/binary, "@">>, hash(read(Secrets, Name))) end,
        Text, [<<"password">>, <<"monitor-password">>]),
    ok = file:write_file(filename:join(Out, "definitions.json"), Filled),
    Cookie = filename:join(Out, ".erlang.cookie"),
    file:delete(Cookie),
    ok = file:write_file(Cookie, read(Secrets, <<"erlang-cookie">>)),
    ok = file:change_mode(Cookie, 8#400).

read(Folder, Name) ->
    {ok, Text} = file:read_file(filename:join(Folder, Name)),
    string:trim(Text).

%% rabbit_password_hashing_sha256: four bytes of salt, then SHA-256 of salt and password.
hash(Password) ->
    Salt = crypto:strong_rand_bytes(4),
    base64:encode(<<Salt/binary, (crypto:hash(sha256, <<Salt/binary, Password/binary>>))/binary>>).
