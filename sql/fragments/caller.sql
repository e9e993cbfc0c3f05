-- The role that calls: in a SECURITY DEFINER function current_user is its owner.
case current_setting('role') when 'none' then session_user else current_setting('role') end
